// The gated recurrent unit for one instruction set (see kernels.inl, which includes this file).

// r, z and n; their panels are as the LSTM's (recurrence.inl), with three gates.
constexpr int64_t kGruGates = 3;

// ---- forward ----------------------------------------------------------------------------------

// Some sequences at one step, the units of one panel.
template <typename T>
struct GruBlock {
  const GruForwardParams<T>& params;
  int64_t step;
  int64_t panel;
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t sequence) const {
    using M = VectorMath<T>;
    const int64_t hidden = params.steps.hidden_size, unit = panel * kWidth<T>;
    const int64_t count = least(kWidth<T>, hidden - unit);
    const int64_t token = params.steps.offsets[step] + sequence;
    const int64_t before = step ? params.steps.offsets[step - 1] + sequence : sequence;
    const T* h_before = row_before(params, step, before);

    Vector<T> acc[Rows][kGruGates] = {};
    if (params.weight != nullptr && h_before != nullptr) {
      const T* weights = params.weight + panel * hidden * kGruGates * kWidth<T>;
      gemm_block<T, Rows>(acc, h_before, hidden, 1, weights, hidden);
    }
    const T* bias = params.bias + unit;
    for (int r = 0; r < Rows; ++r) {
      const int64_t source = params.input_rows ? params.input_rows[token + r] : token + r;
      const T* from = params.input_projection + source * kGruGates * hidden + unit;
      if (params.recurrent_projection != nullptr) {
        const T* sums = params.recurrent_projection + (sequence + r) * kGruGates * hidden + unit;
        for (int64_t v = 0; v < kGruGates; ++v) acc[r][v] += load(sums + v * hidden, count);
      }
      const Vector<T> reset = M::sigmoid(acc[r][0] + load(from, count) + load(bias, count));
      const Vector<T> update =
          M::sigmoid(acc[r][1] + load(from + hidden, count) + load(bias + hidden, count));
      const Vector<T> of_state = acc[r][2] + load(bias + 3 * hidden, count);
      const Vector<T> candidate = M::tanh(load(from + 2 * hidden, count) +
                                          load(bias + 2 * hidden, count) + reset * of_state);
      const Vector<T> h = h_before ? load(h_before + r * hidden + unit, count) : Vector<T>{};
      T* stored = params.gates + (token + r) * 4 * hidden + unit;
      store(stored, reset, count);
      store(stored + hidden, update, count);
      store(stored + 2 * hidden, candidate, count);
      store(stored + 3 * hidden, of_state, count);
      store(params.output + (token + r) * hidden + unit, candidate + update * (h - candidate),
            count);
    }
  }
};

template <typename T>
void gru_forward(const GruForwardParams<T>& params, int64_t first, int64_t last) {
  const Steps& steps = params.steps;
  const int64_t hidden = steps.hidden_size, panels = gate_panels<T>(hidden);
  for (int64_t step = 0; step < steps.count; ++step) {
    const int64_t end = least(last, steps.batch_sizes[step]);
    if (end <= first) return;
    for (int64_t panel = 0; panel < panels; ++panel) {
      for_blocks(GruBlock<T>{params, step, panel}, first, end);
    }
    const int64_t going_on = step + 1 < steps.count ? steps.batch_sizes[step + 1] : 0;
    for (int64_t b = going_on > first ? going_on : first; b < end; ++b) {
      const T* from = params.output + (steps.offsets[step] + b) * hidden;
      __builtin_memcpy(params.hy + b * hidden, from, hidden * sizeof(T));
    }
  }
}

// ---- backward ---------------------------------------------------------------------------------

// Gate gradients of one token, and what its state passes on to the one before without a product.
template <typename T>
void gru_backward_cell(const GruBackwardParams<T>& params, int64_t step, int64_t sequence) {
  const int64_t hidden = params.steps.hidden_size;
  const int64_t token = params.steps.offsets[step] + sequence;
  const int64_t before = step ? params.steps.offsets[step - 1] + sequence : sequence;
  const T* h_before = row_before(params, step, before);
  const T* gates = params.gates + token * 4 * hidden;
  T* of_input = params.grad_of_input + token * kGruGates * hidden;
  T* of_state = params.grad_of_state + token * kGruGates * hidden;
  T* passed = params.grad_passed + sequence * hidden;
  const T one = 1;
  for (int64_t unit = 0; unit < hidden; unit += kWidth<T>) {
    const int64_t count = least(kWidth<T>, hidden - unit);
    const Vector<T> r = load(gates + unit, count), z = load(gates + hidden + unit, count);
    const Vector<T> n = load(gates + 2 * hidden + unit, count);
    const Vector<T> q = load(gates + 3 * hidden + unit, count);
    const Vector<T> h = h_before ? load(h_before + unit, count) : Vector<T>{};
    const Vector<T> grad = load(params.grad_h + sequence * hidden + unit, count) +
                           load(passed + unit, count) +
                           load(params.grad_output + token * hidden + unit, count);
    const Vector<T> dn = grad * (one - z) * (one - n * n);
    const Vector<T> dz = grad * (h - n) * z * (one - z);
    const Vector<T> dr = dn * q * r * (one - r);
    const Vector<T> shared[2] = {dr, dz};
    for (int64_t v = 0; v < 2; ++v) {
      store(of_input + v * hidden + unit, shared[v], count);
      store(of_state + v * hidden + unit, shared[v], count);
    }
    store(of_input + 2 * hidden + unit, dn, count);
    store(of_state + 2 * hidden + unit, dn * r, count);
    store(passed + unit, grad * z, count);
  }
  if (h_before != nullptr) {
    __builtin_memcpy(params.h_before + token * hidden, h_before, hidden * sizeof(T));
  }
}

template <typename T>
void gru_backward(const GruBackwardParams<T>& params, int64_t first, int64_t last) {
  const int64_t hidden = params.steps.hidden_size, columns = kGruGates * hidden;
  for (int64_t step = params.steps.count - 1; step >= 0; --step) {
    const int64_t end = least(last, params.steps.batch_sizes[step]);
    for (int64_t b = first; b < end; ++b) gru_backward_cell(params, step, b);
    if (params.weight == nullptr || end <= first || (step == 0 && !params.wants_hx)) continue;
    const T* gradients = params.grad_of_state + params.steps.offsets[step] * columns;
    const Matrix<T> a{gradients, params.steps.batch_sizes[step], columns, columns, 1};
    gemm_rows(Gemm<T>{a, params.weight, params.grad_h, hidden}, first, end);
  }
}
