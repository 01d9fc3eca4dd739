// The loss for one instruction set (see kernels.inl, which includes this file).

// Tokens whose logits stay in the second-level cache until their softmax is done.
constexpr int64_t kLossRows = 8 * CAPTIONER_ROWS;

// ---- logits and softmax -----------------------------------------------------------------------

// Some tokens, the words of one panel; the first token's logits go to row `row - base`.
template <typename T>
struct LogitsBlock {
  const LossParams<T>& params;
  int64_t panel, base;
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t row) const {
    const int64_t hidden = params.hidden_size, across = ceil_div(params.vocab_size, kPanel<T>);
    const int64_t panels = packed_panels<T>(hidden, params.vocab_size);
    Vector<T> acc[Rows][kVectors] = {};
    for (int64_t index = panel; index < panels; index += across) {
      const Panel<T> part(index, hidden, params.vocab_size);
      gemm_block<T, Rows>(acc, params.hidden + row * hidden + part.first_depth, hidden, 1,
                          params.words + part.start, part.depth);
    }
    T* to = params.logits + (panel * params.logits_rows + row - base) * kPanel<T>;
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vector<T> bias = load(params.bias + panel * kPanel<T> + v * kWidth<T>);
      for (int r = 0; r < Rows; ++r) store(to + r * kPanel<T> + v * kWidth<T>, acc[r][v] + bias);
    }
  }
};

// The logits of one token: calls use(at, count) for every vector of words, `count` of whose
// numbers are words.
template <typename T, typename Use>
CAPTIONER_INLINE void for_words(const LossParams<T>& params, T* first, const Use& use) {
  for (int64_t word = 0; word < params.vocab_size; word += kPanel<T>) {
    const int64_t left = params.vocab_size - word;
    for (int64_t v = 0; v < kPanel<T> && v < left; v += kWidth<T>) {
      use(first + v, word + v, least(kWidth<T>, left - v));
    }
    first += params.logits_rows * kPanel<T>;
  }
}

// `value` with `other` from number `count` on.
template <typename T>
CAPTIONER_INLINE Vector<T> first_of(Vector<T> value, int64_t count, T other) {
  for (int64_t k = count; k < kWidth<T>; ++k) value[k] = other;
  return value;
}

template <typename T>
CAPTIONER_INLINE T sum_of(Vector<T> value) {
  T sum = 0;
  for (int64_t k = 0; k < kWidth<T>; ++k) sum += value[k];
  return sum;
}

template <typename T>
void softmax_loss(const LossParams<T>& params, int64_t token, int64_t row, T* grad_bias) {
  T* first = params.logits + row * kPanel<T>;
  const int64_t target = params.targets[token];
  if (target == kIgnored) {
    params.losses[token] = T(0);
    if (params.wants_gradient) {
      for_words(params, first, [](T* at, int64_t, int64_t) { store(at, Vector<T>{}); });
    }
    return;
  }
  T* at_target = first + target / kPanel<T> * params.logits_rows * kPanel<T> + target % kPanel<T>;
  const T chosen = *at_target;
  const T least_number = -__builtin_huge_val();

  Vector<T> highest = Vector<T>{} + least_number, all{}, powers{};
  for_words(params, first, [&](T* at, int64_t, int64_t count) {
    const Vector<T> value = load(at);
    const Vector<T> words = first_of<T>(value, count, least_number);
    highest = words > highest ? words : highest;
    all += first_of<T>(value, count, T(0));
  });
  T top = highest[0];
  for (int64_t k = 1; k < kWidth<T>; ++k) top = highest[k] > top ? highest[k] : top;
  for_words(params, first, [&](T* at, int64_t, int64_t count) {
    const Vector<T> power = exponential(load(at) - top);
    store(at, power);
    powers += first_of<T>(power, count, T(0));
  });
  const T sum = sum_of<T>(powers), evenly = params.smoothing / params.vocab_size;
  params.losses[token] = T(__builtin_log(sum)) + (top - chosen) +
                         (params.smoothing * chosen - evenly * sum_of<T>(all));
  if (!params.wants_gradient) return;

  const T share = T(1) / sum;
  for_words(params, first, [&](T* at, int64_t, int64_t) { store(at, load(at) * share - evenly); });
  *at_target -= T(1) - params.smoothing;
  for_words(params, first, [&](T* at, int64_t word, int64_t count) {
    store(grad_bias + word, load(grad_bias + word, count) + load(at, count), count);
  });
}

template <typename T>
void loss(const LossParams<T>& params, int64_t first, int64_t last, T* grad_bias) {
  const int64_t panels = ceil_div(params.vocab_size, kPanel<T>);
  for (int64_t begin = first; begin < last; begin += kLossRows) {
    const int64_t end = least(begin + kLossRows, last);
    const int64_t base = params.wants_gradient ? 0 : begin;
    for (int64_t panel = 0; panel < panels; ++panel) {
      for_blocks(LogitsBlock<T>{params, panel, base}, begin, end);
    }
    for (int64_t n = begin; n < end; ++n) softmax_loss(params, n, n - base, grad_bias);
  }
}

// ---- gradients --------------------------------------------------------------------------------

// Some tokens; a panel of the weight holds some words (its depth) of some hidden units.
template <typename T>
struct GradHiddenBlock {
  const LossGradient<T>& params;
  const Panel<T>& panel;
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t row) const {
    Vector<T> acc[Rows][kVectors] = {};
    for (int64_t word = 0; word < panel.depth; word += kPanel<T>) {
      const int64_t words = panel.first_depth / kPanel<T> + word / kPanel<T>;
      gemm_block<T, Rows>(acc, params.grad_logits + (words * params.tokens + row) * kPanel<T>,
                          kPanel<T>, 1, params.words + panel.start + word * kPanel<T>,
                          least(kPanel<T>, panel.depth - word));
    }
    put<T, Rows>(acc, panel, params.factor, params.grad_hidden + row * params.hidden_size,
                 params.hidden_size);
  }
};

template <typename T>
void loss_grad_hidden(const LossGradient<T>& params, int64_t first, int64_t last) {
  static_assert(kDepthBlock % kPanel<T> == 0);
  const int64_t across = ceil_div(params.hidden_size, kPanel<T>);
  const int64_t panels = packed_panels<T>(params.vocab_size, params.hidden_size);
  for (int64_t depth = 0; depth < panels; depth += across) {
    for (int64_t begin = first; begin < last; begin += kLossRows) {
      for (int64_t index = depth; index < depth + across; ++index) {
        const Panel<T> panel(index, params.vocab_size, params.hidden_size);
        for_blocks(GradHiddenBlock<T>{params, panel}, begin, least(begin + kLossRows, last));
      }
    }
  }
}

// Some words of one panel of logits; a panel of hidden states holds some tokens (its depth).
template <typename T>
struct GradWeightBlock {
  const LossGradient<T>& params;
  const Panel<T>& panel;
  int64_t words;
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t word) const {
    const int64_t from = words * params.tokens + panel.first_depth;
    Vector<T> acc[Rows][kVectors] = {};
    gemm_block<T, Rows>(acc, params.grad_logits + from * kPanel<T> + word, 1, kPanel<T>,
                        params.hidden + panel.start, panel.depth);
    put<T, Rows>(acc, panel, params.factor,
                 params.grad_weight + (words * kPanel<T> + word) * params.hidden_size,
                 params.hidden_size);
  }
};

template <typename T>
void loss_grad_weight(const LossGradient<T>& params, int64_t first_panel, int64_t last_panel) {
  const int64_t panels = packed_panels<T>(params.tokens, params.hidden_size);
  for (int64_t words = first_panel; words < last_panel; ++words) {
    const int64_t count = least(kPanel<T>, params.vocab_size - words * kPanel<T>);
    for (int64_t index = 0; index < panels; ++index) {
      const Panel<T> panel(index, params.tokens, params.hidden_size);
      for_blocks(GradWeightBlock<T>{params, panel, words}, 0, count);
    }
  }
}
