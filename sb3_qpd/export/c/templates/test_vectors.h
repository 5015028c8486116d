//: import "macros.h" as macros with context
/* Observations, with the outputs and actions of the student. Written by sb3_qpd ${version}. */
#ifndef POLICY_TEST_VECTORS_H
#define POLICY_TEST_VECTORS_H

#include <stdint.h>

//: if is_dict
#include "policy.h"

//: endif
#define POLICY_N_VECTORS ${vectors.outputs | length}

//: if is_dict
static const struct policy_observation test_observations[${vectors.outputs | length}] = {
//: for row in range(vectors.outputs | length)
    {
//: for field in fields
        ${vectors.observations[row][field.name] | value_of(field.c_type, field.is_scalar)},
//: endfor
    },
//: endfor
};

//: elif observation_type == "float"
${macros.array("float", "test_observations", vectors.observations | floats)}

//: elif observation_type == "double"
${macros.array("double", "test_observations", vectors.observations | doubles)}

//: else
${macros.array(observation_type, "test_frames" if image else "test_observations", vectors.observations | integers)}

//: endif
${macros.array("int32_t", "test_outputs", vectors.outputs | integers)}

//: if action_type == "float"
${macros.array("float", "test_actions", vectors.actions | floats)}
//: else
${macros.array("int32_t", "test_actions", vectors.actions | integers)}
//: endif
//: if value_layer
//#
${macros.array("int32_t", "test_values", vectors.values | integers)}
//: endif
//: if masks
//#
${macros.array("uint8_t", "test_masks", vectors.masks | integers)}
//: endif
//: if masks or probabilities
//#
${macros.array("uint32_t", "test_weights", vectors.weights | unsigned)}
//: endif
//: if not box
//#
${macros.array("uint32_t", "test_random_bits", vectors.random_bits | unsigned)}

${macros.array("int32_t", "test_samples", vectors.samples | integers)}
//: endif
//#
#endif
