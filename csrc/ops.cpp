// The operators' schemas. Kernels register themselves in cpu/ and cuda/; fake kernels and autograd
// are defined beside the public functions in src/captioner/ops/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(captioner, library) {
  library.def(
      "lstm_packed(Tensor input, Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih, "
      "Tensor weight_hh, Tensor bias_ih, Tensor bias_hh, Tensor? input_rows=None, "
      "bool capacity=False, int algorithm=0) "
      "-> (Tensor output, Tensor hy, Tensor cy, Tensor workspace)");
  library.def(
      "lstm_packed_backward(Tensor grad_output, Tensor grad_hy, Tensor grad_cy, Tensor input, "
      "Tensor batch_sizes, Tensor hx, Tensor cx, Tensor weight_ih, Tensor weight_hh, "
      "Tensor output, Tensor workspace, Tensor? input_rows=None, bool wants_hx=True, "
      "bool capacity=False, int algorithm=0) "
      "-> (Tensor grad_input, Tensor grad_hx, Tensor grad_cx, Tensor grad_weight_ih, "
      "Tensor grad_weight_hh, Tensor grad_bias)");
  library.def(
      "gru_packed(Tensor input, Tensor batch_sizes, Tensor hx, Tensor weight_ih, Tensor weight_hh, "
      "Tensor bias_ih, Tensor bias_hh, Tensor? input_rows=None) "
      "-> (Tensor output, Tensor hy, Tensor workspace)");
  library.def(
      "gru_packed_backward(Tensor grad_output, Tensor grad_hy, Tensor input, Tensor batch_sizes, "
      "Tensor hx, Tensor weight_ih, Tensor weight_hh, Tensor output, Tensor workspace, "
      "Tensor? input_rows=None, bool wants_hx=True) "
      "-> (Tensor grad_input, Tensor grad_hx, Tensor grad_weight_ih, Tensor grad_weight_hh, "
      "Tensor grad_bias_ih, Tensor grad_bias_hh)");
  library.def("lstm_algorithm_fits(Tensor weight_hh, int batch, int algorithm) -> bool");
  library.def(
      "lstm_step(Tensor projection, Tensor rows, Tensor hx, Tensor cx, Tensor weight_hh) "
      "-> (Tensor hy, Tensor cy)");
  library.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor bias, Tensor targets, "
      "float label_smoothing=0.0, bool wants_gradient=True) "
      "-> (Tensor loss, Tensor grad_logits, Tensor grad_bias)");
  library.def(
      "linear_cross_entropy_backward(Tensor grad_loss, Tensor hidden, Tensor weight, "
      "Tensor grad_logits, Tensor grad_bias) "
      "-> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)");
  library.def(
      "additive_scores(Tensor queries, Tensor keys, Tensor images, Tensor weight) -> Tensor");
  library.def(
      "additive_scores_backward(Tensor grad_scores, Tensor queries, Tensor keys, Tensor images, "
      "Tensor weight) -> (Tensor grad_queries, Tensor grad_keys, Tensor grad_weight)");
  library.def("cpu_vector_bytes() -> int");
}
