#include "provider/ep/kernel_registry.h"

#include "provider/ep/op_schema.h"
#include "provider/ep/options.h"
#include "provider/ep/sparse_matmul_kernel.h"

namespace flashllm::ep {
namespace {

// Types are the schema's matter: a kernel's constraints would only repeat it.
void AddKernel(OrtKernelRegistry* registry, const char* domain, const char* name, int since_version,
               OrtKernelCreateFunc create) {
  OrtKernelDefBuilder* builder = nullptr;
  Check(g_ort.ep->CreateKernelDefBuilder(&builder));
  Owned<OrtKernelDefBuilder> owned_builder(builder);
  Check(g_ort.ep->KernelDefBuilder_SetOperatorType(builder, name));
  Check(g_ort.ep->KernelDefBuilder_SetDomain(builder, domain));
  Check(g_ort.ep->KernelDefBuilder_SetSinceVersion(builder, since_version, since_version));
  Check(g_ort.ep->KernelDefBuilder_SetExecutionProvider(builder, kEpName));
  OrtKernelDef* definition = nullptr;
  Check(g_ort.ep->KernelDefBuilder_Build(builder, &definition));
  Owned<OrtKernelDef> owned_definition(definition);
  Check(g_ort.ep->KernelRegistry_AddKernel(registry, definition, create, nullptr));
}

}  // namespace

Owned<OrtKernelRegistry> MakeKernelRegistry() {
  OrtKernelRegistry* registry = nullptr;
  Check(g_ort.ep->CreateKernelRegistry(&registry));
  Owned<OrtKernelRegistry> owned(registry);
  AddKernel(registry, kDomain, kSparseMatMul, kSinceVersion, CreateSparseMatMulKernel);
  return owned;
}

}  // namespace flashllm::ep
