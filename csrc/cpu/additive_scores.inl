// Scores of additive attention for one instruction set (see kernels.inl, which includes this file).

// Units of a panel of the backward: those of a cache line.
template <typename T>
constexpr int64_t kScoreUnits = 64 / sizeof(T);

// exp(2 x) of the first `count` numbers from `from` on; 1 beyond.
template <typename T>
CAPTIONER_INLINE Vector<T> power(const T* from, int64_t count) {
  const T limit = kScoreLimit<T>;
  Vector<T> x = load(from, count);
  x = x > limit ? Vector<T>{} + limit : x;
  x = x < -limit ? Vector<T>{} - limit : x;
  return exponential(x + x);
}

// ---- forward ----------------------------------------------------------------------------------

// Rows of powers are this long: whole vectors.
template <typename T>
CAPTIONER_INLINE int64_t padded_units(int64_t units) {
  return ceil_div(units, kWidth<T>) * kWidth<T>;
}

template <typename T>
CAPTIONER_INLINE void power_rows(const T* from, int64_t rows, int64_t units, T* to) {
  for (int64_t row = 0; row < rows; ++row, from += units) {
    for (int64_t unit = 0; unit < units; unit += kWidth<T>, to += kWidth<T>) {
      store(to, power(from + unit, least(kWidth<T>, units - unit)));
    }
  }
}

// One token, some regions.
template <typename T>
struct ScoresBlock {
  int64_t columns;
  const T* query;   // [columns] powers
  const T* keys;    // [R, columns] powers
  const T* weight;  // [columns]
  T weight_sum;
  T* scores;  // [R]
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t region) const {
    const T* key = keys + region * columns;
    Vector<T> acc[Rows] = {};
    for (int64_t unit = 0; unit < columns; unit += kWidth<T>) {
      const Vector<T> q = load(query + unit), w = load(weight + unit);
      for (int r = 0; r < Rows; ++r) acc[r] += w / (q * load(key + r * columns + unit) + T(1));
    }
    for (int r = 0; r < Rows; ++r) scores[region + r] = weight_sum - T(2) * sum_of<T>(acc[r]);
  }
};

template <typename T>
int64_t scores_space(int64_t regions, int64_t units) {
  return (regions + 2) * padded_units<T>(units);
}

template <typename T>
void scores(const AdditiveForward<T>& task, int64_t first, int64_t last, T* space) {
  const AdditiveParams<T>& x = task.params;
  const int64_t columns = padded_units<T>(x.units);
  T *weight = space, *query = weight + columns, *keys = query + columns;
  for (int64_t unit = 0; unit < x.units; unit += kWidth<T>) {
    store(weight + unit, load(x.weight + unit, least(kWidth<T>, x.units - unit)));
  }
  for (int64_t image = 0; image < x.images; ++image) {
    const int64_t begin = x.starts[image] > first ? x.starts[image] : first;
    const int64_t end = least(x.starts[image + 1], last);
    if (begin >= end) continue;
    power_rows(x.keys + image * x.regions * x.units, x.regions, x.units, keys);
    for (int64_t place = begin; place < end; ++place) {
      const int64_t token = x.tokens[place];
      power_rows(x.queries + token * x.units, 1, x.units, query);
      const ScoresBlock<T> block{columns, query,           keys,
                                 weight,  task.weight_sum, task.scores + token * x.regions};
      for_blocks(block, 0, x.regions);
    }
  }
}

// ---- backward ---------------------------------------------------------------------------------

// One image's tokens, some of its regions, one vector of units.
template <typename T>
struct ScoresGradientBlock {
  const AdditiveBackward<T>& task;
  const int64_t *tokens, tokens_count;
  int64_t at, count;       // where the keys of region 0 begin; units of the vector
  const T* queries;        // [tokens_count, width] powers
  T* grad_queries;         // [tokens_count, width] added to, without the factor
  Vector<T> factor;        // 4 weight
  Vector<T>& grad_weight;  // added to
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t region) const {
    const int64_t units = task.params.units, regions = task.params.regions;
    const int64_t from = at + region * units;
    Vector<T> keys[Rows], grad_keys[Rows] = {}, sum{};
    for (int r = 0; r < Rows; ++r) keys[r] = power(task.params.keys + from + r * units, count);
    for (int64_t n = 0; n < tokens_count; ++n) {
      const T* grad = task.grad_scores + tokens[n] * regions + region;
      const Vector<T> query = load(queries + n * kWidth<T>);
      Vector<T> grad_query = load(grad_queries + n * kWidth<T>);
      for (int r = 0; r < Rows; ++r) {
        const Vector<T> ratio = T(1) / (query * keys[r] + T(1));
        const Vector<T> part = grad[r] * ratio;
        const Vector<T> change = part - part * ratio;
        sum += part;
        grad_keys[r] += change;
        grad_query += change;
      }
      store(grad_queries + n * kWidth<T>, grad_query);
    }
    for (int r = 0; r < Rows; ++r) {
      store(task.grad_keys + from + r * units, factor * grad_keys[r], count);
    }
    grad_weight += sum;
  }
};

// Work space for a backward whose images have at most so many tokens each.
template <typename T>
int64_t scores_gradient_space(int64_t tokens) {
  return 2 * tokens * kWidth<T>;
}

// One image, one vector of units.
template <typename T>
void image_gradient(const AdditiveBackward<T>& task, int64_t image, int64_t unit, T* space) {
  const AdditiveParams<T>& x = task.params;
  const int64_t count = least(kWidth<T>, x.units - unit);
  const int64_t* tokens = x.tokens + x.starts[image];
  const int64_t tokens_count = x.starts[image + 1] - x.starts[image];
  T *queries = space, *grad_queries = space + tokens_count * kWidth<T>;
  for (int64_t n = 0; n < tokens_count; ++n) {
    store(queries + n * kWidth<T>, power(x.queries + tokens[n] * x.units + unit, count));
    store(grad_queries + n * kWidth<T>, Vector<T>{});
  }
  const Vector<T> factor = T(4) * load(x.weight + unit, count);
  Vector<T> sum = load(task.grad_weight + unit, count);
  const int64_t at = image * x.regions * x.units + unit;
  const ScoresGradientBlock<T> block{task,    tokens,       tokens_count, at, count,
                                     queries, grad_queries, factor,       sum};
  for_blocks(block, 0, x.regions);
  store(task.grad_weight + unit, sum, count);
  for (int64_t n = 0; n < tokens_count; ++n) {
    const Vector<T> found = factor * load(grad_queries + n * kWidth<T>);
    store(task.grad_queries + tokens[n] * x.units + unit, found, count);
  }
}

template <typename T>
void scores_gradient(const AdditiveBackward<T>& task, int64_t first_panel, int64_t last_panel,
                     T* space) {
  const int64_t first = first_panel * kScoreUnits<T>;
  const int64_t last = least(last_panel * kScoreUnits<T>, task.params.units);
  for (int64_t unit = first; unit < last; ++unit) task.grad_weight[unit] = T(0);
  for (int64_t image = 0; image < task.params.images; ++image) {
    for (int64_t unit = first; unit < last; unit += kWidth<T>) {
      image_gradient(task, image, unit, space);
    }
  }
  for (int64_t unit = first; unit < last; ++unit) {
    task.grad_weight[unit] = task.grad_sum - T(2) * task.grad_weight[unit];
  }
}
