#include "states.h"

namespace freedive {

int States::add_layer(int size, int input_dim) {
    layers_.push_back({size, input_dim, slot_floats_, input_floats_});
    slot_floats_ += size;
    input_floats_ += input_dim;
    return int(layers_.size()) - 1;
}

void States::allocate(int num_slots, int num_sequences) {
    num_slots_ = num_slots, num_sequences_ = num_sequences;
    memory_ = Memory(num_slots * slot_bytes());
    drafts_ = Memory(num_sequences * kMaxDraft * input_floats_ * sizeof(float));
}

}  // namespace freedive
