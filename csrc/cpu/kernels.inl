// The kernels for one instruction set. kernels_avx512.cpp and its siblings set
//   CAPTIONER_ISA           the namespace, so that no two instruction sets share a symbol
//   CAPTIONER_VECTOR_BYTES  the size of a vector register
//   CAPTIONER_ROWS          rows whose accumulators the registers hold at once, times 4 vectors
// and include this file with the compiler set to that instruction set. Nothing of the standard
// library is called here: its templates would be compiled for these instructions too, and the
// linker might pick that copy for all callers.

#define CAPTIONER_INLINE inline __attribute__((always_inline))

#include "../lstm_cell.h"

namespace captioner::cpu::CAPTIONER_ISA {

#include "vector.h"

}  // namespace captioner::cpu::CAPTIONER_ISA

namespace captioner {
template <>
struct Math<cpu::CAPTIONER_ISA::Single::Vector> : cpu::CAPTIONER_ISA::VectorMath<float> {};
template <>
struct Math<cpu::CAPTIONER_ISA::Double::Vector> : cpu::CAPTIONER_ISA::VectorMath<double> {};
}  // namespace captioner

namespace captioner::cpu::CAPTIONER_ISA {

// clang-format off: the others stand on the first
#include "gemm.inl"
#include "recurrence.inl"
#include "gru.inl"
#include "cross_entropy.inl"
#include "additive_scores.inl"
// clang-format on

template <typename T>
const Kernels<T>& functions() {
  static const Kernels<T> all{CAPTIONER_VECTOR_BYTES > 16,
                              packed_panels<T>,
                              packed_size<T>,
                              pack<T>,
                              gemm_rows<T>,
                              gate_panels<T>,
                              {gates_size<T, kVectors>, pack_gates<T, kVectors>},
                              forward<T>,
                              backward<T>,
                              {gates_size<T, kGruGates>, pack_gates<T, kGruGates>},
                              gru_forward<T>,
                              gru_backward<T>,
                              kPanel<T>,
                              kLossRows,
                              loss<T>,
                              loss_grad_hidden<T>,
                              loss_grad_weight<T>,
                              scores_space<T>,
                              scores<T>,
                              kScoreUnits<T>,
                              scores_gradient_space<T>,
                              scores_gradient<T>};
  return all;
}

}  // namespace captioner::cpu::CAPTIONER_ISA
