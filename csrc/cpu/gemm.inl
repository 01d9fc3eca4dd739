// GEMMs for one instruction set (see kernels.inl, which includes this file).
//
// The right-hand matrix is packed into panels of kVectors vectors that the innermost loop reads
// from front to back; kDepthBlock keeps a panel within the second-level cache. With a packed matrix
// a row costs hardly more in a step's small GEMM than in one over a whole batch.

constexpr int64_t kVectors = 4;
constexpr int64_t kDepthBlock = 512;

template <typename T>
constexpr int64_t kPanel = kVectors * kWidth<T>;

CAPTIONER_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
CAPTIONER_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// acc[r][v] += sum over k of a[r * row_stride + k * depth_stride] * panel[k][v][:], the innermost
// loop of everything; `panel` is [depth, Vectors, width].
template <typename T, int Rows, int64_t Vectors>
CAPTIONER_INLINE void gemm_block(Vector<T> (&acc)[Rows][Vectors], const T* a, int64_t row_stride,
                                 int64_t depth_stride, const T* panel, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k, a += depth_stride, panel += Vectors * kWidth<T>) {
    T factors[Rows];
    for (int r = 0; r < Rows; ++r) factors[r] = a[r * row_stride];
    for (int64_t v = 0; v < Vectors; ++v) {
      const Vector<T> weights = load(panel + v * kWidth<T>);
      for (int r = 0; r < Rows; ++r) acc[r][v] += factors[r] * weights;
    }
  }
}

// Calls block.run<Rows>(row) for all rows of [first, last), as many at once as registers hold.
template <typename Block>
CAPTIONER_INLINE void for_blocks(const Block& block, int64_t first, int64_t last) {
  int64_t row = first;
  for (; row + CAPTIONER_ROWS <= last; row += CAPTIONER_ROWS) {
    block.template run<CAPTIONER_ROWS>(row);
  }
  switch (last - row) {
    case 1:
      return block.template run<1>(row);
    case 2:
      return block.template run<2>(row);
#if CAPTIONER_ROWS > 3
    case 3:
      return block.template run<3>(row);
    case 4:
      return block.template run<4>(row);
    case 5:
      return block.template run<5>(row);
#endif
    default:
      return;
  }
}

template <typename T>
int64_t packed_panels(int64_t depth, int64_t columns) {
  return ceil_div(depth, kDepthBlock) * ceil_div(columns, kPanel<T>);
}

template <typename T>
int64_t packed_size(int64_t depth, int64_t columns) {
  return depth * ceil_div(columns, kPanel<T>) * kPanel<T>;
}

// Where a panel lies in a packed matrix, and what of the matrix it holds.
template <typename T>
struct Panel {
  int64_t start, depth, first_depth, columns, first_column;
  CAPTIONER_INLINE Panel(int64_t index, int64_t all_depth, int64_t all_columns) {
    const int64_t across = ceil_div(all_columns, kPanel<T>);
    first_depth = index / across * kDepthBlock;
    depth = least(kDepthBlock, all_depth - first_depth);
    first_column = index % across * kPanel<T>;
    columns = least(kPanel<T>, all_columns - first_column);
    start = first_depth * across * kPanel<T> + index % across * depth * kPanel<T>;
  }
};

template <typename T>
void pack(const Matrix<T>& matrix, T* packed, int64_t first_panel, int64_t last_panel) {
  constexpr int64_t rows = 16;  // of a panel, written together where a column lies close in memory
  for (int64_t index = first_panel; index < last_panel; ++index) {
    const Panel<T> panel(index, matrix.rows, matrix.columns);
    T* to = packed + panel.start;
    const T* from = matrix.values + panel.first_depth * matrix.row_stride +
                    panel.first_column * matrix.column_stride;
    for (int64_t begin = 0; begin < panel.depth; begin += rows) {
      const int64_t end = least(begin + rows, panel.depth);
      for (int64_t c = 0; matrix.column_stride != 1 && c < panel.columns; ++c) {
        const T* column = from + c * matrix.column_stride;
        for (int64_t k = begin; k < end; ++k) to[k * kPanel<T> + c] = column[k * matrix.row_stride];
      }
      for (int64_t k = begin; k < end; ++k) {
        T* row = to + k * kPanel<T>;
        if (matrix.column_stride == 1) {
          __builtin_memcpy(row, from + k * matrix.row_stride, panel.columns * sizeof(T));
        }
        for (int64_t c = panel.columns; c < kPanel<T>; ++c) row[c] = T(0);
      }
    }
  }
}

// Writes or, from the second depth block on, adds `factor` times the accumulators of one panel.
template <typename T, int Rows>
CAPTIONER_INLINE void put(const Vector<T> (&acc)[Rows][kVectors], const Panel<T>& panel, T factor,
                          T* to, int64_t row_stride) {
  for (int64_t v = 0; v < kVectors && v * kWidth<T> < panel.columns; ++v) {
    const int64_t count = least(kWidth<T>, panel.columns - v * kWidth<T>);
    for (int r = 0; r < Rows; ++r) {
      T* target = to + r * row_stride + panel.first_column + v * kWidth<T>;
      Vector<T> value = acc[r][v] * factor;
      if (panel.first_depth > 0) value += load(target, count);
      store(target, value, count);
    }
  }
}

template <typename T>
struct GemmBlock {
  const Gemm<T>& gemm;
  const Panel<T>& panel;
  template <int Rows>
  CAPTIONER_INLINE void run(int64_t row) const {
    const Matrix<T>& a = gemm.a;
    Vector<T> acc[Rows][kVectors] = {};
    gemm_block<T, Rows>(acc, a.values + row * a.row_stride + panel.first_depth * a.column_stride,
                        a.row_stride, a.column_stride, gemm.packed + panel.start, panel.depth);
    put<T, Rows>(acc, panel, T(1), gemm.result + row * gemm.columns, gemm.columns);
  }
};

template <typename T>
void gemm_rows(const Gemm<T>& gemm, int64_t first, int64_t last) {
  const int64_t panels = packed_panels<T>(gemm.a.columns, gemm.columns);
  for (int64_t index = 0; index < panels; ++index) {
    const Panel<T> panel(index, gemm.a.columns, gemm.columns);
    for_blocks(GemmBlock<T>{gemm, panel}, first, last);
  }
}
