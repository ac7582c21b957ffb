// What layers keep of whole sequences, as floats: a slot for each sequence under way, and slots for copies.
#pragma once

#include <cstddef>
#include <vector>

#include "memory.h"

namespace freedive {

constexpr int kMaxDraft = 15;  // tokens of a sequence that a step computes before they are accepted

// A layer's part of a slot, and what it remembers of a draft token, in floats.
struct StateLayer {
    int size, input_dim;
    std::size_t offset, input_offset;
};

class States {
  public:
    int add_layer(int size, int input_dim);
    // The first `num_sequences` of `num_slots` are for sequences under way: only these have draft tokens.
    void allocate(int num_slots, int num_sequences);
    int num_slots() const { return num_slots_; }
    int num_sequences() const { return num_sequences_; }
    std::size_t slot_bytes() const { return slot_floats_ * sizeof(float); }
    unsigned char* slots() const { return memory_.as<unsigned char>(); }
    float* state(int slot, int layer) const {
        return memory_.as<float>() + slot * slot_floats_ + layers_[layer].offset;
    }
    // Inputs of a sequence's draft tokens: [kMaxDraft, input_dim].
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
