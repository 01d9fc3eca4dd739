// The recurrence for one instruction set (see kernels.inl, which includes this file).

// The hidden state that a step reads, from row `before` on; nullptr where all of it is 0.
template <typename Params>
CAPTIONER_INLINE auto row_before(const Params& params, int64_t step, int64_t before) {
  const auto* states = step ? params.output : params.hx;
  return states ? states + before * params.steps.hidden_size : nullptr;
}

// ---- forward ----------------------------------------------------------------------------------

// A panel has the weights of `kWidth` units: [H, Gates, width], so that the accumulators of a
// unit's gates are as many registers and its cell is computed before any of them is stored.
template <typename T>
int64_t gate_panels(int64_t hidden_size) {
  return ceil_div(hidden_size, kWidth<T>);
}

template <typename T, int64_t Gates>
int64_t gates_size(int64_t hidden_size) {
  return gate_panels<T>(hidden_size) * hidden_size * Gates * kWidth<T>;
}

template <typename T, int64_t Gates>
void pack_gates(const T* weight_hh, int64_t hidden_size, T* packed, int64_t first_panel,
                int64_t last_panel) {
  constexpr int64_t width = kWidth<T>;
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    T* to = packed + panel * hidden_size * Gates * width;
    const int64_t units = least(width, hidden_size - panel * width);
    for (int64_t gate = 0; gate < Gates; ++gate) {
      const T* from = weight_hh + (gate * hidden_size + panel * width) * hidden_size;
      for (int64_t k = 0; k < hidden_size; ++k) {
        T* values = to + (k * Gates + gate) * width;
        for (int64_t u = 0; u < units; ++u) values[u] = from[u * hidden_size + k];
        for (int64_t u = units; u < width; ++u) values[u] = T(0);
      }
    }
  }
}

// Some sequences at one step, the units of one panel.
template <typename T>
struct ForwardBlock {
  const ForwardParams<T>& params;
  int64_t step;
  int64_t panel;
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t sequence) const {
    const int64_t hidden = params.steps.hidden_size, unit = panel * kWidth<T>;
    const int64_t count = least(kWidth<T>, hidden - unit);
    const int64_t token = params.steps.offsets[step] + sequence;
    const int64_t before = step ? params.steps.offsets[step - 1] + sequence : sequence;
    const T* h_before = row_before(params, step, before);
    const T* c_before = (step ? params.cells : params.cx) + before * hidden + unit;

    Vector<T> acc[Rows][kVectors] = {};
    if (params.weight != nullptr && h_before != nullptr) {
      const T* weights = params.weight + panel * hidden * kPanel<T>;
      gemm_block<T, Rows>(acc, h_before, hidden, 1, weights, hidden);
    }
    for (int r = 0; r < Rows; ++r) {
      const int64_t source = params.input_rows ? params.input_rows[token + r] : token + r;
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t column = v * hidden + unit;
        acc[r][v] += load(params.input_projection + source * 4 * hidden + column, count);
        if (params.bias != nullptr) acc[r][v] += load(params.bias + column, count);
        if (params.recurrent_projection != nullptr) {
          acc[r][v] +=
              load(params.recurrent_projection + (sequence + r) * 4 * hidden + column, count);
        }
      }
      const auto gates = activate(Gates<Vector<T>>{acc[r][0], acc[r][1], acc[r][2], acc[r][3]});
      const auto cell = cell_forward(gates, load(c_before + r * hidden, count));
      T* stored = params.gates + (token + r) * 4 * hidden + unit;
      store(stored, gates.i, count);
      store(stored + hidden, gates.f, count);
      store(stored + 2 * hidden, gates.g, count);
      store(stored + 3 * hidden, gates.o, count);
      store(params.cells + (token + r) * hidden + unit, cell.c, count);
      store(params.output + (token + r) * hidden + unit, cell.h, count);
    }
  }
};

// The states of the sequences whose last step this was.
template <typename T>
void copy_last(const ForwardParams<T>& params, int64_t step, int64_t first, int64_t end) {
  const Steps& steps = params.steps;
  const int64_t continuing = step + 1 < steps.count ? steps.batch_sizes[step + 1] : 0;
  const int64_t bytes = steps.hidden_size * sizeof(T);
  for (int64_t b = continuing > first ? continuing : first; b < end; ++b) {
    const int64_t token = (steps.offsets[step] + b) * steps.hidden_size;
    __builtin_memcpy(params.hy + b * steps.hidden_size, params.output + token, bytes);
    __builtin_memcpy(params.cy + b * steps.hidden_size, params.cells + token, bytes);
  }
}

template <typename T>
void forward(const ForwardParams<T>& params, int64_t first, int64_t last) {
  const int64_t panels = gate_panels<T>(params.steps.hidden_size);
  for (int64_t step = 0; step < params.steps.count; ++step) {
    const int64_t end = least(last, params.steps.batch_sizes[step]);
    if (end <= first) return;
    // A panel stays in the second-level cache while all rows are multiplied by it.
    for (int64_t panel = 0; panel < panels; ++panel) {
      for_blocks(ForwardBlock<T>{params, step, panel}, first, end);
    }
    copy_last(params, step, first, end);
  }
}

// ---- backward ---------------------------------------------------------------------------------

// Gate gradients of one token, and the gradient of its cell for the previous step.
template <typename T>
void backward_cell(const BackwardParams<T>& params, int64_t step, int64_t sequence, T* grad_bias) {
  const int64_t hidden = params.steps.hidden_size;
  const int64_t token = params.steps.offsets[step] + sequence;
  const int64_t before = step ? params.steps.offsets[step - 1] + sequence : sequence;
  const T* h_before = row_before(params, step, before);
  const T* c_before = (step ? params.cells : params.cx) + before * hidden;
  const T* gates = params.gates + token * 4 * hidden;
  T* grad_gates = params.grad_gates + token * 4 * hidden;
  T* grad_c = params.grad_c + sequence * hidden;
  for (int64_t unit = 0; unit < hidden; unit += kWidth<T>) {
    const int64_t count = least(kWidth<T>, hidden - unit);
    const Gates<Vector<T>> activated{load(gates + unit, count), load(gates + hidden + unit, count),
                                     load(gates + 2 * hidden + unit, count),
                                     load(gates + 3 * hidden + unit, count)};
    const auto grad_h = load(params.grad_h + sequence * hidden + unit, count) +
                        load(params.grad_output + token * hidden + unit, count);
    const auto gradient = cell_backward(activated, load(c_before + unit, count),
                                        load(params.cells + token * hidden + unit, count), grad_h,
                                        load(grad_c + unit, count));
    store(grad_c + unit, gradient.c_before, count);
    const Gates<Vector<T>>& d = gradient.pre_activations;
    const Vector<T> of_gates[kVectors] = {d.i, d.f, d.g, d.o};
    for (int64_t v = 0; v < kVectors; ++v) {
      T* bias = grad_bias + v * hidden + unit;
      store(grad_gates + v * hidden + unit, of_gates[v], count);
      store(bias, load(bias, count) + of_gates[v], count);
    }
  }
  if (h_before != nullptr) {
    __builtin_memcpy(params.h_before + token * hidden, h_before, hidden * sizeof(T));
  }
}

template <typename T>
void backward(const BackwardParams<T>& params, int64_t first, int64_t last, T* grad_bias) {
  const int64_t hidden = params.steps.hidden_size;
  for (int64_t step = params.steps.count - 1; step >= 0; --step) {
    const int64_t end = least(last, params.steps.batch_sizes[step]);
    for (int64_t b = first; b < end; ++b) backward_cell(params, step, b, grad_bias);
    if (params.weight == nullptr || end <= first || (step == 0 && !params.wants_hx)) continue;
    const T* grad_gates = params.grad_gates + params.steps.offsets[step] * 4 * hidden;
    const Matrix<T> a{grad_gates, params.steps.batch_sizes[step], 4 * hidden, 4 * hidden, 1};
    gemm_rows(Gemm<T>{a, params.weight, params.grad_h, hidden}, first, end);
  }
}
