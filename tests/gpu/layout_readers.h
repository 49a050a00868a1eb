// Layouts read back on the host, by the words of layout.h and jagged_layout.h alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/sparse-matmul/cuda/jagged_layout.h"
#include "ops/sparse-matmul/cuda/layout.h"
#include "ops/sparse-matmul/cuda/spmm.h"
#include "tests/gpu/packed_fixture.h"

namespace flashllm::test {

/// Reads one run of a column layout back on the host, by layout.h's words alone: copies stages into a ring as early as
/// the record and the headers let it and has 32 lanes read it. False where a lane reads what is not there, or shares a
/// column.
class RunReader {
 public:
  /// `first_tile`: of the run in a panel.
  RunReader(const cuda::WeightPlan& plan, const std::vector<uint8_t>& layout, int64_t run, int block, int first_tile)
      : plan_(plan), layout_(layout), block_(block), warp_tile_(first_tile), ring_(plan.ring_rows * 128, 0xee) {
    std::memcpy(&record_, layout.data() + run * sizeof(record_), sizeof(record_));
    masks_ = record_.masks * int64_t{16}, values_ = record_.values * int64_t{128};
    for (int l = 0; l < 32; ++l) at_[l][0] = 4 * l, at_[l][1] = 4 * l + 2;
  }

  bool Read(int first_unit, int end_unit, std::vector<float>* dense) {
    const int tiles = plan_.tile_start[block_ + 1] - plan_.tile_start[block_];
    const int panels = plan_.panel_start[block_ + 1] - plan_.panel_start[block_];
    for (cuda::StageCopy copy : record_.first) {
      if (!Copy(copy)) return false;
    }
    if (plan_.columns == cuda::Columns::kQuads) return ReadQuads(first_unit, end_unit, tiles, dense);
    for (int panel = 0; panel < panels; ++panel) {
      first_tile_ = plan_.tile_start[block_] + panel * tiles / panels + warp_tile_;
      const int panel_tiles = (panel + 1) * tiles / panels - panel * tiles / panels;
      depth_ = group() ? (panel_tiles + 3) / 4 : panel_tiles;
      own_ = group() ? (panel_tiles - warp_tile_ + 3) / 4 : panel_tiles;
      const bool triplet = plan_.team == cuda::Team::kRowTriplet,
                 groups = triplet || plan_.team == cuda::Team::kRowGroup;
      units_ = depth_ > 4 ? 1 : depth_ > 2 ? 2 : depth_ > 1 || triplet || (groups && !words()) ? 4 : 8;
      if (groups && own_ == 0) continue;
      for (int unit = first_unit; unit < end_unit; unit += units_) {
        if (issued_ == done_ || !EnterStage()) return false;
        for (int lane = 0; lane < 32; ++lane) {
          if (!ReadLane(lane, unit, end_unit, dense)) return false;
        }
        ++done_;
        for (cuda::StageCopy copy : header_.next) {
          if (!Copy(copy)) return false;
        }
      }
    }
    return done_ == issued_;
  }

 private:
  /// Of a row block with so many tiles.
  bool ReadQuads(int first_unit, int end_unit, int tiles, std::vector<float>* dense) {
    if (warp_tile_ >= tiles) return issued_ == 0;
    first_tile_ = plan_.tile_start[block_] + warp_tile_;
    for (int unit = first_unit; unit < end_unit; unit += plan_.window_units) {
      bool more = true;
      while (more) {
        if (issued_ == done_ || !EnterStage()) return false;
        const int stage_units = header_.shift & 15;
        more = (header_.shift & 16) != 0;
        if (stage_units < 1 || stage_units > 8) return false;
        for (int lane = 0; lane < 32; ++lane) {
          if (!ReadQuadLane(lane, unit, std::min(unit + plan_.window_units, end_unit), stage_units, dense))
            return false;
        }
        ++done_;
        for (cuda::StageCopy copy : header_.next) {
          if (!Copy(copy)) return false;
        }
      }
    }
    return done_ == issued_;
  }

  /// A lane's words of a stage: which slots have values; which k of pairs, of four units and of four more; where X of
  /// four units lies and of four more.
  uint32_t QuadWord(int lane, int word) const {
    uint32_t value;
    std::memcpy(&value, &stage()[48 + (word < 4 ? 16 * lane + 4 * word : 512 + 4 * lane)], 4);
    return value;
  }

  bool ReadQuadLane(int lane, int unit, int end_unit, int stage_units, std::vector<float>* dense) {
    const int g = lane / 4, t = lane % 4;
    for (int u = 0; u < 8; ++u) {
      for (int r = 0; r < 4; ++r) {
        if (!(QuadWord(lane, 0) >> (8 * r + u) & 1)) continue;
        const int at = at_[lane][0];
        if (u >= stage_units || at < 0 || at >= static_cast<int>(ring_.size())) return false;
        at_[lane][0] += 128;
        // Threads 0 and 1 of a quad speak for even units, 2 and 3 for odd ones: the first of four quads, the second of
        // the other four; of rows g and g + 8.
        const uint32_t choices =
            QuadWord(4 * g + 2 * (u % 2) + r / 2, 1 + u / 4) >> (4 * (t + 4 * (r % 2)) + u / 2 % 2);
        for (int h = 0; h < 2; ++h) {
          const int choice = choices >> (2 * h) & 1;
          const int logical = 4 * (t + r / 2 * 4) + 2 * h + choice;  // of the unit: k, in the order of the product
          const int place = QuadWord(logical, 3 + u / 4) >> (8 * (u % 4)) & 255;
          const int k_in_unit = (place >> 1 & 3) * 8 + (place >> 3 & 3) * 2 + place % 2;
          const int64_t m = first_tile_ * 16 + g + 8 * (r % 2), k = (unit + place / 32) * int64_t{32} + k_in_unit;
          uint16_t value;
          std::memcpy(&value, &ring_[at + 2 * h], 2);
          if (value == 0) continue;  // the row has none of this pair, or a zero is stored
          if (m >= plan_.out_features || k >= plan_.in_features || unit + place / 32 >= end_unit) return false;
          float& element = (*dense)[m * plan_.in_features + k];
          if (element != 0) return false;
          element = FromBits16(value, plan_.value_type);
        }
      }
    }
    return true;
  }

  bool group() const { return plan_.team != cuda::Team::kWarp; }
  bool words() const { return plan_.columns == cuda::Columns::kWords; }

  /// Copies the next stage, if `copy` names one. False where it cannot be, or has no slot yet.
  bool Copy(cuda::StageCopy copy) {
    if (copy.bits == 0) return true;
    const int rows = copy.bits & 255, again = copy.bits >> 8 & 255, at = copy.bits >> 16 & 255;
    if (issued_ - done_ >= cuda::kStageSlots || at + again + rows > plan_.ring_rows) return false;
    const int64_t bytes = 16 * (copy.bits >> 24), from = values_ - again * 128, size = (again + rows) * 128;
    if (bytes < int64_t{sizeof(cuda::StageHeader)} || masks_ + bytes > plan_.layout_bytes || from < 0 ||
        from + size > plan_.layout_bytes)
      return false;
    slots_[issued_++ % cuda::kStageSlots].assign(&layout_[masks_], &layout_[masks_] + bytes);
    std::copy_n(layout_.begin() + from, size, ring_.begin() + at * 128);
    masks_ += bytes, values_ += rows * 128;
    return true;
  }

  const std::vector<uint8_t>& stage() const { return slots_[done_ % cuda::kStageSlots]; }

  bool EnterStage() {
    std::memcpy(&header_, stage().data(), sizeof(header_));
    int from[32][2];
    std::memcpy(from, at_, sizeof(from));
    uint32_t columns = 0;
    for (int l = 0; l < 32; ++l) {
      const int lane = header_.column[l] % 32, exchange = header_.column[l] / 32;
      columns |= 1u << lane;
      for (int h = 0; h < 2; ++h) {
        // Of quads the low bits tell something else.
        int at = from[lane][h ^ exchange] + (header_.shift & ~31);
        const int place = (at % 128 + 128) % 128;
        if (header_.jump != 0) at = std::max<int>(at - place, (header_.jump - 1) * 128) + place;
        at_[l][h] = at;
      }
    }
    return columns == 0xffffffffu;  // every lane has a column of its own
  }

  bool ReadLane(int lane, int unit0, int end_unit, std::vector<float>* dense) {
    const int slots = words() ? 4 : 8, all_words = (depth_ * units_ * 2 * slots + 31) / 32;
    const bool packed = own_ < depth_ && units_ == 2 && !words();
    for (int i = 0; i < 2 * depth_ * units_; ++i) {  // unit, tile, k16-step, the last running fastest; then its slots
      const int unit = i / (2 * depth_), index = i / 2 % depth_, s = i % 2, tile = group() ? 4 * index : index;
      if (packed && index >= own_) continue;
      for (int slot = 0; slot < slots; ++slot) {
        const int r = words() ? slot : slot / 2, chain = words() ? 0 : slot % 2;
        int word = words() ? i / 8 : i / 4, bit = words() ? i % 8 : 2 * (i % 4) + chain, mask_words = all_words;
        if (packed) {
          // A word less: of depth 4 words 1 and 3 have their low halves only, and are the last one's low and high half;
          // of depth 3 word 1 has its high half and word 2 its low one.
          --mask_words;
          if (depth_ == 4) bit += word == 3 ? 4 : 0, word = word == 0 ? 0 : word == 2 ? 1 : 2;
          if (depth_ == 3) word = word == 0 ? 0 : 1;
        }
        // Words are stored 4, 2 or 1 at a time.
        const int word_at = mask_words == 4              ? 16 * lane + 4 * word
                            : mask_words > 1 && word < 2 ? 8 * lane + 4 * word
                                                         : 128 * (mask_words - 1) + 4 * lane;
        if (!(stage()[48 + word_at + r] >> bit & 1)) continue;  // of byte r
        if (unit0 + unit >= end_unit || index >= own_) return false;
        const int at = at_[lane][chain];
        if (at < 0 || at >= static_cast<int>(ring_.size())) return false;
        at_[lane][chain] += 128;
        for (int h = words() ? 0 : chain; h < (words() ? 2 : chain + 1); ++h) {
          uint16_t value;
          std::memcpy(&value, &ring_[at + (words() ? 2 * h : 0)], 2);
          const int64_t m = (first_tile_ + tile) * 16 + lane / 4 + 8 * (r & 1);
          const int of_unit = group() ? 16 * s + 2 * (lane % 4) + 8 * (r / 2) : 8 * (lane % 4) + 4 * s + 2 * (r / 2);
          const int64_t k = (unit0 + unit) * 32 + of_unit + h;
          if (m < plan_.out_features && k < plan_.in_features)
            (*dense)[m * plan_.in_features + k] = FromBits16(value, plan_.value_type);
          else if (value != 0)
            return false;
        }
      }
    }
    return true;
  }

  const cuda::WeightPlan& plan_;
  const std::vector<uint8_t>& layout_;
  const int block_, warp_tile_;
  cuda::RunRecord record_;
  cuda::StageHeader header_;  // of the stage that is read
  std::vector<uint8_t> ring_, slots_[cuda::kStageSlots];
  int64_t masks_, values_;
  int issued_ = 0, done_ = 0, first_tile_ = 0, depth_ = 0, own_ = 0, units_ = 0;
  int at_[32][2];  // bytes in the ring, as Cursor
};

/// Reads a column layout back. False where a lane reads what is not there.
inline bool DecodeColumns(const cuda::WeightPlan& plan, const std::vector<uint8_t>& layout, std::vector<float>* dense) {
  const int64_t units = (plan.in_features + 31) / 32, lanes = plan.lanes * plan.cluster;
  dense->assign(plan.out_features * plan.in_features, 0.0f);
  for (int block = 0; block < plan.blocks; ++block) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      if (plan.team == cuda::Team::kWarp) {
        RunReader reader(plan, layout, block * lanes + lane, block, 0);
        if (!reader.Read(lane * units / lanes, (lane + 1) * units / lanes, dense)) return false;
        continue;
      }
      const int64_t pairs = (units + 1) / 2, end = std::min((lane + 1) * pairs / lanes * 2, units);
      for (int warp = 0; warp < 4; ++warp) {
        RunReader reader(plan, layout, (block * lanes + lane) * 4 + warp, block,
                         (warp + lane + block % plan.row_groups) % 4);
        if (!reader.Read(lane * pairs / lanes * 2, end, dense)) return false;
      }
    }
  }
  return true;
}

/// Reads a jagged layout back on the host, by jagged_layout.h's words alone. False where it says what cannot be.
inline bool DecodeJagged(const cuda::WeightPlan& plan, const std::vector<uint8_t>& layout, std::vector<float>* dense) {
  dense->assign(plan.out_features * plan.in_features, 0.0f);
  const auto word_at = [&](int64_t at) {
    uint32_t word;
    std::memcpy(&word, &layout[at], 4);
    return word;
  };
  const int runs = plan.blocks * cuda::kJaggedWarps;
  const int64_t windows = (plan.in_features + plan.window_k - 1) / plan.window_k;
  if (word_at(4 * runs) * int64_t{128} != plan.layout_bytes) return false;
  std::vector<bool> seen(plan.out_features * windows);
  for (int run = 0; run < runs; ++run) {
    int64_t at = word_at(4 * run) * int64_t{128};
    const int64_t end = word_at(4 * (run + 1)) * int64_t{128}, first_row = plan.row_start[run / cuda::kJaggedWarps];
    if (at > end || end > plan.layout_bytes) return false;
    while (at < end) {
      int count[32], before = 1 << 20, longest = 0;
      int64_t row[32], k[32], end_k[32];
      for (int lane = 0; lane < 32; ++lane) {
        const uint32_t word = word_at(at + 4 * lane);
        count[lane] = word == 0xffffffffu ? 0 : word & 1023;
        if (count[lane] > before) return false;
        before = count[lane], longest = std::max(longest, before);
        if (word == 0xffffffffu) continue;
        row[lane] = first_row + (word >> 10 & 511);
        const int64_t window = word >> 19;
        if (row[lane] >= plan.row_start[run / cuda::kJaggedWarps + 1] || window >= windows) return false;
        if (seen[row[lane] * windows + window]) return false;
        seen[row[lane] * windows + window] = true;
        k[lane] = window * plan.window_k - 1, end_k[lane] = (window + 1) * plan.window_k;
      }
      at += 128;
      for (int step = 0; step < longest; step += 8) {
        uint32_t distances[32];
        for (int lane = 0; lane < 32 && count[lane] > step; ++lane, at += 4) distances[lane] = word_at(at);
        for (int pair = 0; pair < 4; ++pair) {
          for (int lane = 0; lane < 32 && count[lane] > step + 2 * pair; ++lane, at += 4) {
            for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
              const uint16_t bits = static_cast<uint16_t>(word_at(at) >> (16 * (i & 1)));
              k[lane] += 1 + (distances[lane] >> (8 * (i % 4) + 4 * (i / 4)) & 15);
              const float value = FromBits16(bits, ValueType::kFloat16);
              const bool filler = step + i >= count[lane];  // the one behind the last entry
              if (filler ? value != 0 || k[lane] > plan.in_features
                         : k[lane] >= std::min(end_k[lane], plan.in_features))
                return false;
              if (value != 0) (*dense)[row[lane] * plan.in_features + k[lane]] = value;
            }
          }
        }
      }
      at = (at + 127) / 128 * 128;
    }
    if (at != end) return false;
  }
  return std::find(seen.begin(), seen.end(), false) == seen.end();
}

}  // namespace flashllm::test
