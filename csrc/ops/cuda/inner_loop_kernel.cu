#include "inner_loop_kernel.cuh"
#include "stream.cuh"

namespace metarec::cuda {

Machine current_machine() {
  int device = 0;
  check_cuda(cudaGetDevice(&device));
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, device));
    return std::int64_t{value};
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

#define METAREC_INSTANTIATE(Real)                                                                                     \
  template Cuts inner_loop_cuts(const InnerProblem<Real>&, std::int64_t, const InnerAdjoint<Real>*, const Machine&);  \
  template void inner_loop(const Stream&, const InnerProblem<Real>&, const Cuts&, Real*, Real*);                      \
  template void inner_loop_backward(const Stream&, const InnerProblem<Real>&, const Cuts&, Real*, InnerAdjoint<Real>, \
                                    Real*, Real*);                                                                    \
  template void inner_loop_share(const Stream&, const Network<Real>&, const SumsLayout&, const BlockSums<Real>&,      \
                                 Real*, const SharedGradients<Real>&);                                                \
  template void inner_loop_state(const Stream&, const InnerProblem<Real>&, const Cuts&, Real*,                        \
                                 const AdaptedHeads<Real>&);                                                          \
  template Cut inner_loop_state_cut(const InnerProblem<Real>&, bool, const Machine&);                                 \
  template void inner_loop_predict(const Stream&, InnerProblem<Real>, const Cut&, Real*, const AdaptedHeads<Real>&,   \
                                   Real*);                                                                            \
  template void inner_loop_effects(const Stream&, const InnerProblem<Real>&, const Cuts&, Real*, const Real*, Real*); \
  template void inner_loop_add(const Stream&, Real*, const Real*, std::int64_t);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
#undef METAREC_INSTANTIATE

}  // namespace metarec::cuda
