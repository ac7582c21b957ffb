// Per-sequence states of all layers, as floats: one slot for each running sequence, and slots for snapshots.
#pragma once

#include <cstddef>
#include <vector>

#include "memory.h"

namespace freedive {

constexpr int kMaxDraft = 15;  // tokens of a sequence that a step computes before they are accepted

// A layer's part of a slot, and the inputs that it keeps of each draft token; sizes and offsets in floats.
struct StateLayer {
    int size, input_dim;
    std::size_t offset, input_offset;
};

class States {
  public:
    int add_layer(int size, int input_dim);
    // The first `num_sequences` of `num_slots` slots are for running sequences; only these have draft tokens.
    void allocate(int num_slots, int num_sequences);
    int num_slots() const { return num_slots_; }
    int num_sequences() const { return num_sequences_; }
    std::size_t slot_bytes() const { return slot_floats_ * sizeof(float); }
    unsigned char* slots() const { return memory_.as<unsigned char>(); }
    float* state(int slot, int layer) const {
        return memory_.as<float>() + slot * slot_floats_ + layers_[layer].offset;
    }
    // The inputs of a sequence's draft tokens: [kMaxDraft, input_dim].
    float* drafts(int slot, int layer) const {
        return drafts_.as<float>() + kMaxDraft * (slot * input_floats_ + layers_[layer].input_offset);
    }

  private:
    std::vector<StateLayer> layers_;
    std::size_t slot_floats_ = 0, input_floats_ = 0;
    int num_slots_ = 0, num_sequences_ = 0;
    Memory memory_, drafts_;
};

}  // namespace freedive
