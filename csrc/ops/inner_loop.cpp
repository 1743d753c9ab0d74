#include <torch/csrc/stable/library.h>

#define METAREC_SUPPORT "Tensor support, Tensor targets, Tensor weights, Tensor support_offsets, bool mean, "
#define METAREC_QUERY "Tensor query, Tensor query_offsets, "
#define METAREC_HEAD "Tensor parameters, SymInt[] widths, str activation, str loss, "
#define METAREC_RATES "Tensor rates, Tensor? output_scales, Tensor? input_scales, Tensor? scales, float pull"

STABLE_TORCH_LIBRARY_FRAGMENT(metarec, library) {
  library.def("inner_loop(" METAREC_SUPPORT METAREC_QUERY METAREC_HEAD METAREC_RATES
              ", SymInt order, SymInt keep, SymInt room) -> (Tensor, Tensor)");
  library.def("inner_loop_backward(Tensor grad, " METAREC_SUPPORT METAREC_QUERY METAREC_HEAD METAREC_RATES
              ", SymInt order, SymInt keep, Tensor trace, bool[] wanted) -> Tensor[]");
  library.def("inner_loop_state(" METAREC_SUPPORT METAREC_HEAD METAREC_RATES ") -> (Tensor, Tensor, Tensor)");
  library.def(
      "inner_loop_predict(Tensor rows, Tensor coefficients, Tensor adapted, Tensor support_offsets, " METAREC_QUERY
      "Tensor parameters, SymInt[] widths, str activation) -> Tensor");
  library.def("inner_loop_effects(" METAREC_SUPPORT METAREC_QUERY METAREC_HEAD METAREC_RATES
              ", SymInt pairs) -> Tensor");
}
