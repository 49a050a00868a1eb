// Gather along the first axis: embeddings.
#include "ops/decoder/cuda/gather.h"

#include "provider/ep/cuda/kernel.h"
#include "provider/ep/cuda/kernels/kernels.h"

namespace flashllm::ep {
namespace {

class Gather : public CudaKernel {
 public:
  explicit Gather(const OrtKernelInfo* info) : CudaKernel(info, "Gather"), fault_(ep().faults().Add(where())) {}

 private:
  void Run(const Call& call) override {
    const Tensor table = call.Required(0, "data"), indices = call.Required(1, "indices");
    if (table.shape.rank < 1) Reject("has data without an axis");
    std::vector<int64_t> dims(indices.shape.dims, indices.shape.dims + indices.shape.rank);
    dims.insert(dims.end(), table.shape.dims + 1, table.shape.dims + table.shape.rank);
    cuda::GatherArgs args;
    args.y = call.Output(0, MakeShape(dims.data(), dims.size()), table.type);
    if (args.y == nullptr) return;
    args.table = table.data, args.indices = indices.data;
    args.table_rows = table.shape.dims[0];
    args.row_bytes = ElementBytes(table.type);
    for (int i = 1; i < table.shape.rank; ++i) args.row_bytes *= table.shape.dims[i];
    args.count = indices.count();
    args.index_type = DataTypeOf(indices.type);
    args.fault = ep().faults().Word(fault_, call.stream());
    args.programmatic = ep().programmatic();
    CheckLaunch(cuda::LaunchGather(args, call.stream()));
  }
  const size_t fault_;
};

}  // namespace

OrtKernelCreateFunc GatherOnGpu() { return Create<Gather>; }

}  // namespace flashllm::ep
