//: import "macros.h" as macros with context
/* Observations, with the outputs and actions of the student. Written by sb3_qpd ${version}. */
#ifndef POLICY_TEST_VECTORS_H
#define POLICY_TEST_VECTORS_H

#include <stdint.h>

#define POLICY_N_VECTORS ${vectors.outputs | length}

//: if observation_type == "float"
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
//: if not box
//#
${macros.array("uint32_t", "test_random_bits", vectors.random_bits | unsigned)}

${macros.array("int32_t", "test_samples", vectors.samples | integers)}
//: endif
//#
#endif
