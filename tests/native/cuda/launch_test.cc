// How launches are described to the CUDA runtime: no GPU is needed for it.
#include "ops/cuda/launch.h"
#include "doctest/doctest.h"

using namespace flashllm::cuda;

TEST_CASE("a launch has the attributes that its shape asks for, and no others") {
  LaunchShape shape;
  shape.grid = dim3(12, 3);
  shape.threads = 96;
  shape.shared_bytes = 1000;
  const auto stream = reinterpret_cast<cudaStream_t>(0x10);
  for (int cluster : {1, 4}) {
    for (bool programmatic : {false, true}) {
      CAPTURE(cluster);
      CAPTURE(programmatic);
      shape.cluster = cluster, shape.programmatic = programmatic;
      const KernelLaunch launch(shape, stream);
      const cudaLaunchConfig_t& config = *launch.get();
      CHECK((config.gridDim.x == 12 && config.gridDim.y == 3 && config.gridDim.z == 1));
      CHECK((config.blockDim.x == 96 && config.blockDim.y == 1 && config.blockDim.z == 1));
      CHECK(config.dynamicSmemBytes == 1000);
      CHECK(config.stream == stream);
      REQUIRE(config.numAttrs == (cluster > 1 ? 1u : 0u) + (programmatic ? 1u : 0u));
      if (cluster > 1) {
        CHECK(config.attrs[0].id == cudaLaunchAttributeClusterDimension);
        const auto& size = config.attrs[0].val.clusterDim;
        CHECK((size.x == 4 && size.y == 1 && size.z == 1));
      }
      if (programmatic) {
        const cudaLaunchAttribute& last = config.attrs[config.numAttrs - 1];
        CHECK(last.id == cudaLaunchAttributeProgrammaticStreamSerialization);
        CHECK(last.val.programmaticStreamSerializationAllowed == 1);
      }
    }
  }
}

TEST_CASE("more thread blocks than a grid may have do not become fewer") {
  for (int64_t blocks : {int64_t{1}, int64_t{INT32_MAX}, int64_t{INT32_MAX} + 1, int64_t{UINT32_MAX}}) {
    CAPTURE(blocks);
    const dim3 grid = GridOf(blocks);
    CHECK((grid.x == blocks && grid.y == 1 && grid.z == 1));
  }
  CHECK(GridOf((int64_t{1} << 32) + 5).x > INT32_MAX);  // which LaunchKernel refuses
  CHECK(GridOf(INT64_MAX).x > INT32_MAX);
}
