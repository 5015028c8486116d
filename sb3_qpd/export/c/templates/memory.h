//: import "macros.h" as macros with context
/*
 * The memory of ${macros.title()}
 *
 * Written by sb3_qpd ${version}. Begin an episode with policy_reset(). Then push each observation, and call the functions of
 * policy.h with policy_window:
 *
 *     policy_push(observation);
 *     policy_act(policy_window, ...);
 */
#ifndef POLICY_MEMORY_H
#define POLICY_MEMORY_H

#include "policy.h"

#ifdef __cplusplus
extern "C" {
#endif

#define POLICY_HISTORY ${history} /* observations in the window */
#define POLICY_STEP_SIZE (POLICY_OBSERVATION_SIZE / POLICY_HISTORY) /* numbers of one observation */

/* The last observations, the newest one at the end. */
extern ${observation_type} policy_window[POLICY_OBSERVATION_SIZE];

/* Fills the window with what stands before an episode: zeros of the input grid. */
void policy_reset(void);

/*
 * Moves the window on by an observation. One that is not finite leaves the window as it is; after POLICY_NOT_FINITE from
 * another function call policy_reset().
 */
int policy_push(const ${observation_type} observation[POLICY_STEP_SIZE]);

#ifdef __cplusplus
}
#endif

#endif
