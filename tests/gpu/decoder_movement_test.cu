// Gather and the copies of the decode graph: every element where it belongs, and no other touched.
#include <algorithm>

#include "ops/decoder/cuda/gather.h"
#include "ops/decoder/cuda/strided_copy.h"
#include "tests/gpu/decoder_fixture.h"
#include "tests/gpu/decoder_test.h"

namespace flashllm::test {
namespace {

using cuda::StridedCopyArgs;

std::vector<uint8_t> RandomBytes(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() % 255);  // never the poison
  return bytes;
}

void RunGather(int64_t rows, int64_t row_bytes, int64_t count, DataType index_type, bool hostile,
               size_t misaligned = 0) {
  const std::string what = "gather rows=" + std::to_string(rows) + " bytes=" + std::to_string(row_bytes) +
                           " count=" + std::to_string(count) + " " + Name(index_type);
  const std::vector<uint8_t> table = RandomBytes(rows * row_bytes, 1);
  Tensor indices = Random(count, index_type, 2, -static_cast<double>(rows), static_cast<double>(rows));
  if (hostile) {
    indices.values[0] = static_cast<double>(rows);
    indices.values[count / 2] = -static_cast<double>(rows) - 1;
    indices.values[count - 1] = index_type == DataType::kInt32 ? -2147483648.0 : -0x1p63;
  }
  Buffer table_device(table, misaligned), indices_device(indices.bytes()), y(count * row_bytes, misaligned);
  Buffer fault(std::vector<uint8_t>(4, 0));
  cuda::GatherArgs args;
  args.table = table_device.get(), args.indices = indices_device.get(), args.y = y.get();
  args.table_rows = rows, args.row_bytes = row_bytes, args.count = count, args.index_type = index_type;
  args.fault = static_cast<uint32_t*>(fault.get());
  const auto bytes = RunThrice(what, y, [&](Turn& turn) {
    args.programmatic = turn.Late({&indices_device, &table_device});
    return cuda::LaunchGather(args, nullptr);
  });
  std::vector<uint8_t> expected(count * row_bytes, 0);
  for (int64_t i = 0; i < count; ++i) {
    double row = indices.values[i];
    if (row < 0) row += static_cast<double>(rows);
    if (row < 0 || row >= static_cast<double>(rows)) continue;
    std::copy_n(table.begin() + static_cast<int64_t>(row) * row_bytes, row_bytes, expected.begin() + i * row_bytes);
  }
  Expect(bytes == expected, what, "wrong bytes");
  Expect((fault.Read()[0] == cuda::kFaultIndex) == hostile, what, "wrong report of an index outside");
}

/// Runs a described copy and compares it with a walk over every index on the host.
void RunCopy(const std::string& name, StridedCopyArgs copy, int64_t from_count, int64_t to_count,
             size_t misaligned = 0) {
  for (int64_t element : {1, 2, 4, 8}) {
    const std::string what = name + ", elements of " + std::to_string(element);
    const std::vector<uint8_t> from = RandomBytes(from_count * element, 3);
    Buffer from_device(from, misaligned * element), to(to_count * element, misaligned * element);
    copy.from = from_device.get(), copy.to = to.get(), copy.element_bytes = element;
    const auto bytes = RunThrice(what, to, [&](Turn& turn) {
      copy.programmatic = turn.Late({&from_device});
      return cuda::LaunchStridedCopy(copy, nullptr);
    });
    std::vector<uint8_t> expected(to_count * element, 0xff);
    for (int64_t i = 0; i < copy.shape.count(); ++i) {
      int64_t left = i, source = copy.from_offset, target = copy.to_offset;
      for (int axis = copy.shape.rank - 1; axis >= 0; --axis) {
        source += left % copy.shape.dims[axis] * copy.from_strides[axis];
        target += left % copy.shape.dims[axis] * copy.to_strides[axis];
        left /= copy.shape.dims[axis];
      }
      std::copy_n(from.begin() + source * element, element, expected.begin() + target * element);
    }
    Expect(bytes == expected, what, "wrong bytes");
  }
}

/// The element of a copy's source that reaches a flat index of its contiguous result, for checks of the Describe
/// functions by hand.
int64_t SourceOf(const StridedCopyArgs& copy, int64_t item) {
  int64_t source = copy.from_offset;
  for (int axis = copy.shape.rank - 1; axis >= 0; --axis) {
    source += item % copy.shape.dims[axis] * copy.from_strides[axis];
    item /= copy.shape.dims[axis];
  }
  return source;
}

void RunExpand() {
  StridedCopyArgs copy;
  Expect(DescribeExpand({4, {2, 1, 1, 5}}, {4, {2, 1, 3, 5}}, &copy), "expand", "refused");
  Expect(SourceOf(copy, 0) == 0 && SourceOf(copy, 14) == 4 && SourceOf(copy, 15) == 5, "expand", "wrong source");
  RunCopy("expand", copy, 10, 30);
  Expect(DescribeExpand({4, {8, 1, 1, 2048}}, {4, {8, 1, 64, 2048}}, &copy), "expand", "refused");
  RunCopy("expand of a mask", copy, 8 * 2048, 8 * 64 * 2048);
  Expect(DescribeExpand({1, {1}}, {1, {7}}, &copy), "expand", "refused");
  RunCopy("expand of one", copy, 1, 7);
  Expect(!DescribeExpand({1, {3}}, {1, {7}}, &copy), "expand", "took [3] to [7]");
}

void RunTranspose() {
  StridedCopyArgs copy;
  const int heads[] = {0, 2, 1, 3}, matrix[] = {1, 0}, twice[] = {0, 0}, outside[] = {0, 2};
  Expect(DescribeTranspose({4, {2, 5, 3, 64}}, heads, &copy), "transpose", "refused");
  Expect(SourceOf(copy, 64) == 3 * 64, "transpose", "wrong source");
  RunCopy("transpose of heads", copy, 2 * 5 * 3 * 64, 2 * 5 * 3 * 64);
  RunCopy("transpose of heads, shifted", copy, 2 * 5 * 3 * 64, 2 * 5 * 3 * 64, 1);
  Expect(DescribeTranspose({2, {37, 53}}, matrix, &copy), "transpose", "refused");
  Expect(SourceOf(copy, 1) == 53, "transpose", "wrong source");
  RunCopy("transpose of a matrix", copy, 37 * 53, 37 * 53);
  Expect(!DescribeTranspose({2, {3, 3}}, twice, &copy), "transpose", "took an axis twice");
  Expect(!DescribeTranspose({2, {3, 3}}, outside, &copy), "transpose", "took axis 2 of 2");
}

void RunSlice() {
  StridedCopyArgs copy;
  const int64_t starts[] = {1, 4}, steps[] = {1, -2}, counts[] = {2, 3};
  Expect(DescribeSlice({2, {3, 6}}, starts, steps, counts, &copy), "slice", "refused");
  Expect(SourceOf(copy, 0) == 10 && SourceOf(copy, 2) == 6 && SourceOf(copy, 3) == 16, "slice", "wrong source");
  RunCopy("slice", copy, 18, 6);
  const int64_t part[] = {0, 0, 384}, ones[] = {1, 1, 1}, sizes[] = {2, 3, 384};
  Expect(DescribeSlice({3, {2, 3, 1152}}, part, ones, sizes, &copy), "slice", "refused");
  RunCopy("slice of a packed QKV", copy, 2 * 3 * 1152, 2 * 3 * 384);
  const int64_t none[] = {0, 3};
  Expect(DescribeSlice({2, {3, 6}}, starts, steps, none, &copy), "slice", "refused an empty one");
  RunCopy("empty slice", copy, 18, 0);
  const int64_t many[] = {3, 3}, backwards[] = {2, 4}, still[] = {1, 0};
  Expect(!DescribeSlice({2, {3, 6}}, starts, steps, many, &copy), "slice", "took rows beyond the end");
  Expect(!DescribeSlice({2, {3, 6}}, starts, steps, backwards, &copy), "slice", "took columns before the start");
  Expect(!DescribeSlice({2, {3, 6}}, starts, still, counts, &copy), "slice", "took a step of 0");
}

void RunConcat() {
  StridedCopyArgs copy;
  Expect(DescribeConcat({3, {2, 3, 8}}, {3, {2, 5, 8}}, 1, 2, &copy), "concat", "refused");
  RunCopy("concat", copy, 48, 80);
  Expect(DescribeConcat({1, {1}}, {1, {4}}, 0, 3, &copy), "concat", "refused");
  RunCopy("concat of scalars", copy, 1, 4);
  Expect(DescribeConcat({4, {2, 6, 77, 64}}, {4, {2, 6, 78, 64}}, 2, 0, &copy), "concat", "refused");
  RunCopy("concat of a cache", copy, 2 * 6 * 77 * 64, 2 * 6 * 78 * 64);
  Expect(!DescribeConcat({1, {2}}, {1, {4}}, 0, 3, &copy), "concat", "went beyond the end");
  Expect(!DescribeConcat({2, {2, 3}}, {2, {4, 4}}, 0, 0, &copy), "concat", "took 3 columns for 4");
}

}  // namespace

void RunMovement(Size) {
  for (DataType type : {DataType::kInt32, DataType::kInt64}) {
    for (int64_t row_bytes : {1, 2, 6, 20, 24, 768, 14336}) {
      RunGather(100, row_bytes, 7, type, false);
      RunGather(100, row_bytes, 7, type, true);
    }
    RunGather(1, 64, 1, type, false);
    RunGather(50, 64, 3, type, true, 2);
    RunGather(50, 64, 0, type, false);
    RunGather(2050, 1024, 4096, type, true);
  }
  RunExpand();
  RunTranspose();
  RunSlice();
  RunConcat();
}

}  // namespace flashllm::test
