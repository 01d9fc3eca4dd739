// The recurrence for one instruction set (see kernels.inl, which includes this file).

// The hidden state that a step reads, from row `before` on; nullptr where all of it is 0.
template <typename Pass>
CAPTIONER_INLINE auto row_before(const Pass& pass, int64_t step, int64_t before) {
  const auto* states = step ? pass.output : pass.hx;
  return states ? states + before * pass.steps.hidden_size : nullptr;
}

// ---- forward ----------------------------------------------------------------------------------

// A panel has the weights of `kWidth` units: [H, 4 gates, width], so that the sums of a unit's four
// gates lie in four registers and its cell is computed before any of them is stored.
template <typename T>
int64_t gate_panels(int64_t hidden_size) {
  return ceil_div(hidden_size, kWidth<T>);
}

template <typename T>
int64_t gates_size(int64_t hidden_size) {
  return gate_panels<T>(hidden_size) * hidden_size * kPanel<T>;
}

template <typename T>
void pack_gates(const T* weight_hh, int64_t hidden_size, T* packed, int64_t first_panel,
                int64_t last_panel) {
  constexpr int64_t width = kWidth<T>;
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    T* to = packed + panel * hidden_size * kPanel<T>;
    const int64_t units = least(width, hidden_size - panel * width);
    for (int64_t gate = 0; gate < kVectors; ++gate) {
      const T* from = weight_hh + (gate * hidden_size + panel * width) * hidden_size;
      for (int64_t k = 0; k < hidden_size; ++k) {
        T* values = to + (k * kVectors + gate) * width;
        for (int64_t u = 0; u < units; ++u) values[u] = from[u * hidden_size + k];
        for (int64_t u = units; u < width; ++u) values[u] = T(0);
      }
    }
  }
}

// Some sequences at one step, the units of one panel.
template <typename T>
struct ForwardBlock {
  const ForwardPass<T>& pass;
  int64_t step;
  int64_t panel;
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t sequence) const {
    const int64_t hidden = pass.steps.hidden_size, unit = panel * kWidth<T>;
    const int64_t count = least(kWidth<T>, hidden - unit);
    const int64_t token = pass.steps.offsets[step] + sequence;
    const int64_t before = step ? pass.steps.offsets[step - 1] + sequence : sequence;
    const T* h_before = row_before(pass, step, before);
    const T* c_before = (step ? pass.cells : pass.cx) + before * hidden + unit;

    Vector<T> sums[Rows][kVectors] = {};
    if (pass.weight != nullptr && h_before != nullptr) {
      const T* weights = pass.weight + panel * hidden * kPanel<T>;
      multiply<T, Rows>(sums, h_before, hidden, 1, weights, hidden);
    }
    for (int r = 0; r < Rows; ++r) {
      const int64_t source = pass.input_rows ? pass.input_rows[token + r] : token + r;
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t column = v * hidden + unit;
        sums[r][v] += load(pass.sums + source * 4 * hidden + column, count);
        if (pass.bias != nullptr) sums[r][v] += load(pass.bias + column, count);
        if (pass.recurrent_sums != nullptr) {
          sums[r][v] += load(pass.recurrent_sums + (sequence + r) * 4 * hidden + column, count);
        }
      }
      const auto gates = activate(Gates<Vector<T>>{sums[r][0], sums[r][1], sums[r][2], sums[r][3]});
      const auto cell = cell_forward(gates, load(c_before + r * hidden, count));
      T* stored = pass.gates + (token + r) * 4 * hidden + unit;
      store(stored, gates.i, count);
      store(stored + hidden, gates.f, count);
      store(stored + 2 * hidden, gates.g, count);
      store(stored + 3 * hidden, gates.o, count);
      store(pass.cells + (token + r) * hidden + unit, cell.c, count);
      store(pass.output + (token + r) * hidden + unit, cell.h, count);
    }
  }
};

// The states of the sequences whose last step this was.
template <typename T>
void copy_last(const ForwardPass<T>& pass, int64_t step, int64_t first, int64_t end) {
  const Steps& steps = pass.steps;
  const int64_t living = step + 1 < steps.count ? steps.batch_sizes[step + 1] : 0;
  const int64_t bytes = steps.hidden_size * sizeof(T);
  for (int64_t b = living > first ? living : first; b < end; ++b) {
    const int64_t token = (steps.offsets[step] + b) * steps.hidden_size;
    __builtin_memcpy(pass.hy + b * steps.hidden_size, pass.output + token, bytes);
    __builtin_memcpy(pass.cy + b * steps.hidden_size, pass.cells + token, bytes);
  }
}

template <typename T>
void forward(const ForwardPass<T>& pass, int64_t first, int64_t last) {
  const int64_t panels = gate_panels<T>(pass.steps.hidden_size);
  for (int64_t step = 0; step < pass.steps.count; ++step) {
    const int64_t end = least(last, pass.steps.batch_sizes[step]);
    if (end <= first) return;
    // A panel stays in the second-level cache while all rows pass over it.
    for (int64_t panel = 0; panel < panels; ++panel) {
      for_blocks(ForwardBlock<T>{pass, step, panel}, first, end);
    }
    copy_last(pass, step, first, end);
  }
}

// ---- backward ---------------------------------------------------------------------------------

// Gate gradients of one token, and the gradient of its cell handed on to the step before.
template <typename T>
void backward_cell(const BackwardPass<T>& pass, int64_t step, int64_t sequence, T* grad_bias) {
  const int64_t hidden = pass.steps.hidden_size;
  const int64_t token = pass.steps.offsets[step] + sequence;
  const int64_t before = step ? pass.steps.offsets[step - 1] + sequence : sequence;
  const T* h_before = row_before(pass, step, before);
  const T* c_before = (step ? pass.cells : pass.cx) + before * hidden;
  const T* gates = pass.gates + token * 4 * hidden;
  T* grad_gates = pass.grad_gates + token * 4 * hidden;
  T* grad_c = pass.grad_c + sequence * hidden;
  for (int64_t unit = 0; unit < hidden; unit += kWidth<T>) {
    const int64_t count = least(kWidth<T>, hidden - unit);
    const Gates<Vector<T>> activated{load(gates + unit, count), load(gates + hidden + unit, count),
                                     load(gates + 2 * hidden + unit, count),
                                     load(gates + 3 * hidden + unit, count)};
    const auto grad_h = load(pass.grad_h + sequence * hidden + unit, count) +
                        load(pass.grad_output + token * hidden + unit, count);
    const auto gradient = cell_backward(activated, load(c_before + unit, count),
                                        load(pass.cells + token * hidden + unit, count), grad_h,
                                        load(grad_c + unit, count));
    store(grad_c + unit, gradient.c_before, count);
    const Vector<T> sums[kVectors] = {gradient.sums.i, gradient.sums.f, gradient.sums.g,
                                      gradient.sums.o};
    for (int64_t v = 0; v < kVectors; ++v) {
      T* bias = grad_bias + v * hidden + unit;
      store(grad_gates + v * hidden + unit, sums[v], count);
      store(bias, load(bias, count) + sums[v], count);
    }
  }
  if (h_before != nullptr) {
    __builtin_memcpy(pass.h_before + token * hidden, h_before, hidden * sizeof(T));
  }
}

template <typename T>
void backward(const BackwardPass<T>& pass, int64_t first, int64_t last, T* grad_bias) {
  const int64_t hidden = pass.steps.hidden_size;
  for (int64_t step = pass.steps.count - 1; step >= 0; --step) {
    const int64_t end = least(last, pass.steps.batch_sizes[step]);
    for (int64_t b = first; b < end; ++b) backward_cell(pass, step, b, grad_bias);
    if (pass.weight == nullptr || end <= first || (step == 0 && !pass.wants_hx)) continue;
    const T* grad_gates = pass.grad_gates + pass.steps.offsets[step] * 4 * hidden;
    const Matrix<T> a{grad_gates, pass.steps.batch_sizes[step], 4 * hidden, 4 * hidden, 1};
    multiply_rows(Product<T>{a, pass.weight, pass.grad_h, hidden}, first, end);
  }
}
