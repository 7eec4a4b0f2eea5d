// An operator of another extension, flow_tools::match_and_warp, that calls cosegflow's operators through torch's
// dispatcher. Nothing of cosegflow is included or linked: `import cosegflow` must have registered its operators.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/op_registration/infer_schema.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// [call]
// The operator of this name. Its kernels keep no C++ signature that typed() could check, and a call by a wrong one is a
// crash, so that is compared with the schema here.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  const c10::OperatorHandle found = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  const auto difference =
      c10::findSchemaDifferences(c10::inferFunctionSchemaFlattenedReturns<Signature>(), found.schema());
  TORCH_CHECK(!difference, "called by another signature than ", found.schema(), ": ", *difference);
  return found.typed<Signature>();
}

// The types follow the schemas: `print(torch.ops.cosegflow.match.default._schema)` in Python shows one. Tensor? is
// std::optional<Tensor>, str is c10::string_view, float is double, int is int64_t. Every argument is passed: the
// defaults of a schema do not apply.
using Match = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor& fa, const Tensor& fb,
                                                                 const OptionalTensor& mask_a,
                                                                 const OptionalTensor& mask_b, const Tensor& beta,
                                                                 bool normalize, bool simple, double kernel_sigma,
                                                                 bool return_index, int64_t precision, bool portable);
using Warp = std::tuple<Tensor, Tensor>(const Tensor& x, const Tensor& flow, c10::string_view mode,
                                        c10::string_view padding, bool simple);

// The flow from a to b, and image_b seen in a's frame. Gradients: those of the two operators.
std::tuple<Tensor, Tensor> match_and_warp(const Tensor& fa, const Tensor& fb, const Tensor& image_b,
                                          const Tensor& beta) {
  static const auto match = find_operator<Match>("cosegflow::match");
  static const auto warp = find_operator<Warp>("cosegflow::warp");
  const Tensor flow = std::get<0>(match.call(fa, fb, /*mask_a=*/{}, /*mask_b=*/{}, beta, /*normalize=*/true,
                                             /*simple=*/false, /*kernel_sigma=*/0.0, /*return_index=*/false,
                                             /*precision=*/0, /*portable=*/false));
  const Tensor warped = std::get<0>(warp.call(image_b, flow, "bilinear", "zeros", /*simple=*/false));
  return {flow, warped};
}
// [call]

}  // namespace

TORCH_LIBRARY(flow_tools, m) {
  m.def("match_and_warp(Tensor fa, Tensor fb, Tensor image_b, Tensor beta) -> (Tensor flow, Tensor warped)",
        &match_and_warp);  // composite: autograd, autocast and CUDA come from the operators that it calls
}
