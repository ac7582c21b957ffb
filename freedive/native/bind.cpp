// The module that Python imports; each domain registers its own functions and classes.
#include "bind.h"

#include "train/bind.h"

NB_MODULE(_native, m) {
    freedive::bind_formats(m);
    freedive::bind_sampling(m);
    freedive::bind_machine(m);
    freedive::bind_program(m);
    freedive::bind_training(m);
}
