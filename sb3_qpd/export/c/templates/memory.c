//: import "macros.h" as macros with context
//: set literals = before | integers if fixed else before | doubles if has_origin else before | floats
/*
 * The memory of ${macros.title()}
 *
 * Written by sb3_qpd ${version}.
 */
#include "policy_memory.h"

#include <string.h>

${macros.array(observation_type, "before_episode", literals)}

${observation_type} policy_window[POLICY_OBSERVATION_SIZE];

void policy_reset(void)
{
    uint32_t i;
    for (i = 0; i < POLICY_HISTORY; i++) {
        memcpy(policy_window + i * POLICY_STEP_SIZE, before_episode, sizeof before_episode);
    }
}

int policy_push(const ${observation_type} observation[POLICY_STEP_SIZE])
{
//: if not fixed
    uint32_t i, bits;
//: endif
    if (observation == NULL) {
        return POLICY_NULL_POINTER;
    }
//: if not fixed
    for (i = 0; i < POLICY_STEP_SIZE; i++) {
        const float value = (float)observation[i];
        memcpy(&bits, &value, 4);
        if ((bits & 0x7f800000u) == 0x7f800000u) {
            return POLICY_NOT_FINITE;
        }
    }
//: endif
    memmove(policy_window, policy_window + POLICY_STEP_SIZE, sizeof policy_window - sizeof before_episode);
    memcpy(policy_window + POLICY_OBSERVATION_SIZE - POLICY_STEP_SIZE, observation, sizeof before_episode);
    return POLICY_OK;
}
