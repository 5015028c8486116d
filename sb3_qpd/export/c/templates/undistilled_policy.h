/*
 * The undistilled float actor of ${teacher or "a teacher"}${" for " + env_id if env_id else ""}: ${"{:,}".format(n_bytes)} bytes of parameters.
 *
 * Written by sb3_qpd ${version}. C99 with <math.h> and <string.h>, no heap. Not thread-safe: the layers share static memory.
 */
#ifndef POLICY_H
#define POLICY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    POLICY_OK = 0,
    POLICY_NULL_POINTER = -1, /* an argument is NULL */
    POLICY_NOT_FINITE = -2, /* the observation holds NaN or infinity */
    POLICY_NO_FRAME = -3, /* no frame was pushed after the last policy_reset */
    POLICY_NO_CATEGORY = -4 /* an index of the observation is negative, or not below its number of categories */
};

//: if image
#define POLICY_FRAME_HEIGHT ${height}
#define POLICY_FRAME_WIDTH ${width}
#define POLICY_FRAME_CHANNELS ${channels} /* interleaved: R G B R G B ... */
#define POLICY_FRAME_SIZE (POLICY_FRAME_HEIGHT * POLICY_FRAME_WIDTH * POLICY_FRAME_CHANNELS)
#define POLICY_N_FRAMES ${n_frames} /* frames in an observation */
//: elif is_dict
/* An observation: a field for each key. */
struct policy_observation {
//: for one in inputs
    ${one.field.raw_type} ${one.field.declarator}; /* "${one.key}": ${one.field.comment} */
//: endfor
};
//: else
#define POLICY_OBSERVATION_SIZE ${inputs[0].field.size}
//: if inputs[0].field.kind == "one_hot"
#define POLICY_CATEGORIES {${inputs[0].nvec}} /* of each index of an observation; indices start at 0 */
//: endif
//: endif
#define POLICY_N_OUTPUTS ${actor.n_outputs}
#define POLICY_BUFFER_BYTES ${8 * buffer_size + (4 * n_features if is_dict else 0)} /* static RAM shared by the layers */
//: if actor.is_box
//# the bounds of the action
#define POLICY_ACTION_LOW {${low}}
#define POLICY_ACTION_HIGH {${high}}
//: elif not discrete
#define POLICY_N_ACTIONS ${actor.nvec | length} /* indices in an action */
#define POLICY_ACTION_CATEGORIES {${action_nvec}}
//: endif

//: if image
/* Call it at the start of an episode: it forgets all frames. Missing ones count as zeros, as in SB3's VecFrameStack. */
void policy_reset(void);

/* Add the newest frame and drop the oldest one. */
int policy_push_frame(const uint8_t frame[POLICY_FRAME_SIZE]);

//: set given = ""
//: else
//: set own = "const " ~ inputs[0].field.raw_type ~ " observation[POLICY_OBSERVATION_SIZE], "
//: set given = "const struct policy_observation *observation, " if is_dict else own
//: endif
/*
 * The outputs of the last layer: ${"the mean action before it is clipped" if actor.is_box else "logits or Q-values"}.
 *
 * Functions return POLICY_OK, or a negative code; in that case they write no result.
 */
int policy_outputs(${given}float outputs[POLICY_N_OUTPUTS]);

//: if actor.is_box
/* The action in units of the environment, clipped to its bounds. */
int policy_act(${given}float action[POLICY_N_OUTPUTS]);
//: elif discrete
/* The best action: the index of the largest output. */
int policy_act(${given}int32_t *action);
//: else
/* The best action: for each index the category with the largest output. */
int policy_act(${given}int32_t action[POLICY_N_ACTIONS]);
//: endif

#ifdef __cplusplus
}
#endif

#endif
