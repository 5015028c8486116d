//: import "macros.h" as macros with context
//: set safety = "Thread-safe are the" if reentrant else "Not thread-safe: the layers share static memory."
/*
 * ${macros.title()}
 *
 * Written by sb3_qpd ${version}. C99, no heap, no library but <string.h>. ${safety}
//: if reentrant
 * functions with a policy_state.
//: endif
 *
//: for line in legend
 * ${line}
//: endfor
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
//: if has_grid or memory and memory.is_box
    POLICY_NOT_FINITE = -2, /* a number is NaN or infinity */
//: endif
//: if image
    POLICY_NO_FRAME = -3, /* no frame was pushed after the last policy_reset */
//: endif
//: if has_indices or memory and memory.nvec
    POLICY_NO_CATEGORY = -4, /* an index is negative, or not below its number of categories */
//: endif
//: if masks
    POLICY_NO_ACTION = -5, /* of an index of the action no category is allowed */
//: endif
};

//: if image
//: set channels, height, width = model.observation_shape
#define POLICY_FRAME_HEIGHT ${height}
#define POLICY_FRAME_WIDTH ${width}
#define POLICY_FRAME_CHANNELS ${channels // n_frames} /* interleaved: R G B R G B ... */
#define POLICY_FRAME_SIZE (POLICY_FRAME_HEIGHT * POLICY_FRAME_WIDTH * POLICY_FRAME_CHANNELS)
#define POLICY_N_FRAMES ${n_frames} /* frames in an observation */
#define POLICY_STACK_BYTES (POLICY_FRAME_SIZE * POLICY_N_FRAMES) /* static RAM that holds these frames */
//: elif not is_dict
#define POLICY_OBSERVATION_SIZE ${observation_size}
//: endif
//: if is_indices
//: set categories = model.parts[0].nvec | integers | inline
#define POLICY_CATEGORIES ${categories} /* of each index of an observation; indices start at 0 */
//: endif
#define POLICY_N_OUTPUTS ${head_layer.n_out}
//: if fixed
#define POLICY_IS_FIXED 1 /* integers only, except for the functions under POLICY_FLOAT_HELPERS */
//: else
#define POLICY_IS_FIXED 0 /* sums are rescaled for the next layer in float32 */
//: endif
//: set head = model.layers[-1]
#define POLICY_ARENA_BYTES ${arena_bytes} /* static RAM shared by the layers */
//: if memory
#define POLICY_HISTORY ${history} /* observations that the policy sees */
#define POLICY_STATE_BYTES ${memory.state_bytes} /* what it remembers between two steps */
#define POLICY_WINDOW_BYTES ${memory.window_bytes} /* static RAM that holds this, and the newest observation */
//: endif
//: if masks or probabilities
#define POLICY_N_CATEGORIES ${n_categories} /* of all indices of an action together */
//: endif
//: if masks
#define POLICY_USES_MASKS 1
//: endif
//: if value_layer
#define POLICY_VALUE_SCALE ${value_layer.layer.multiplier[0] | floats}
#define POLICY_VALUE_BYTES ${value_layer.layer.nbytes}
//: endif
//: if probabilities
#define POLICY_HAS_WEIGHTS 1
//: endif
//#
//: if discrete
/* logit = output * POLICY_OUTPUT_SCALE */
#define POLICY_OUTPUT_SCALE ${head.multiplier[0] | floats}

//: elif several
#define POLICY_N_ACTIONS ${model.action_nvec | length} /* indices in an action */
#define POLICY_ACTION_CATEGORIES ${model.action_nvec | integers | inline}
//: if model.n_bits
/* logit of 1 = output * POLICY_OUTPUT_SCALE; the logit of 0 is 0 */
//: else
/* logit = output * POLICY_OUTPUT_SCALE: all categories of the first index, then all of the second, and so on */
//: endif
#define POLICY_OUTPUT_SCALE ${head.multiplier[0] | floats}

//: else
/* mean action = output * POLICY_ACTION_SCALE, clipped to LOW and HIGH; in units of the environment */
#define POLICY_ACTION_SCALE ${head.multiplier | floats | inline}
#define POLICY_ACTION_LOW ${model.action_low | floats | inline}
#define POLICY_ACTION_HIGH ${model.action_high | floats | inline}
/* Standard deviation of the trained policy, for sampling; policy_act returns the mean. */
#define POLICY_ACTION_STD ${model.action_std | floats | inline}

//: endif
//: if image
/* Call it at the start of an episode: it forgets all frames. Missing ones count as zeros, as in SB3's VecFrameStack. */
void policy_reset(void);

/*
 * Add the newest frame and drop the oldest one.
 *
 * If the environment repeats the first frame of an episode, push that frame POLICY_N_FRAMES times after policy_reset.
 */
int policy_push_frame(const uint8_t frame[POLICY_FRAME_SIZE]);

//: else
//: include "observation.h"
//: endif
//: if box and fixed
/* Compile policy.c with -D POLICY_FLOAT_HELPERS; nothing else uses floating point. */
#ifdef POLICY_FLOAT_HELPERS
int policy_action_to_float(const int32_t action[POLICY_N_OUTPUTS], float result[POLICY_N_OUTPUTS]);
#endif

//: endif
//: if memory
/*
 * The policy sees its last POLICY_HISTORY observations, which it keeps itself on the 8-bit grid of the first layer${", and the" if memory.n_action else "."}
//: if memory.n_action
 * actions between them.
//: endif
 *
 * Call policy_reset at the start of an episode: it forgets them. Before the first call nothing is remembered.
 *
//: if box
 * policy_act ends a step: the observation that it is given becomes one of the last ones.
//: else
 * policy_act and policy_sample end a step: the observation that they are given becomes one of the last ones.
//: endif
 * Other functions see the same observations and remember nothing. Call them before the step ends.
 */
void policy_reset(void);

/*
 * End a step without computing an action, in a program that chooses the action itself: remember the observation${", and the" if memory.n_action else "."}
//: if memory.n_action
 * action that was taken.
//: endif
 */
${"int policy_remember(%s);" | format(macros.step_parameters) | signature}

//: endif
/*
 * The outputs of the last layer, which are integers.
 *
 * Functions return POLICY_OK, or a negative code; in that case they write no result.
 */
int policy_outputs(${macros.given_parameter}int32_t outputs[POLICY_N_OUTPUTS]);

//: set of_allowed = ", of those that are allowed" if masks else ""
//: if masks
/*
 * allowed: 1 or 0 for each category of the first index, then of the second, and so on. NULL allows all of them. An index of
 * which no category is allowed gives POLICY_NO_ACTION.
 */

//: endif
//: if discrete
/* The most probable action: the index of the largest output${of_allowed}. */
${"int policy_act(%s%sint32_t *action);" | format(macros.given_parameter, macros.mask_parameter) | signature}

/* An action drawn from the policy's distribution, without floating point. random_bits: 32 random bits, new for each call. */
//: set parameters = macros.given_parameter ~ macros.mask_parameter ~ "uint32_t random_bits, int32_t *action"
${"int policy_sample(%s);" | format(parameters) | signature}

//: elif several
/* The most probable action: for each index the category with the largest output${of_allowed}. */
//: set parameters = macros.given_parameter ~ macros.mask_parameter ~ "int32_t action[POLICY_N_ACTIONS]"
${"int policy_act(%s);" | format(parameters) | signature}

/* An action drawn from the policy's distribution, without floating point. random_bits: 32 random bits for each index. */
int policy_sample(
//: if masks
    ${macros.given_parameter | trim}
    ${macros.mask_parameter | trim}
    const uint32_t random_bits[POLICY_N_ACTIONS], int32_t action[POLICY_N_ACTIONS]);
//: else
    ${macros.given_parameter}const uint32_t random_bits[POLICY_N_ACTIONS], int32_t action[POLICY_N_ACTIONS]);
//: endif
//#
//: else
/* The mean action in units of ${"POLICY_ACTION_SCALE" if fixed else "the environment"}, clipped to its bounds. */
int policy_act(${macros.given_parameter}${action_type} action[POLICY_N_OUTPUTS]);

//: endif
//: if masks or probabilities
/*
 * The weights that policy_sample draws with: of each index, the probability of a category is its weight divided by the sum
 * of the weights of all categories of that index. Their sum is never zero and fits 32 bits.
 */
//: set parameters = macros.given_parameter ~ macros.mask_parameter ~ macros.weights_parameter
${"int policy_weights(%s);" | format(parameters) | signature}

//: endif
//: if value_layer
/*
 * The value of an observation, as the student learned it from its teacher: value = *value * POLICY_VALUE_SCALE. It computes
 * all layers, and the value head of POLICY_VALUE_BYTES bytes of flash.
 */
int policy_value(${macros.given_parameter}int32_t *value);

//: endif
//: if reentrant
/*
 * The same functions with memory that the caller gives: threads act at the same time, each with a policy_state of its own.
//: if image
 * Call policy_reset_r before the first frame. Frames belong to the policy_state that they were pushed into.
//: elif memory
 * Call policy_reset_r before the first observation. Each policy_state has a memory of its own.
//: else
 * It needs no initialization, and holds nothing between two calls.
//: endif
 * With -D POLICY_ONLY_REENTRANT, policy.c leaves out the functions above, and has no static memory.
 */
struct policy_state {
    union {
        int16_t halves[POLICY_ARENA_BYTES / 2];
        uint32_t aligned;
    } arena;
//: if image and n_frames == 4 and model.observation_shape[0] == 4
    uint32_t stack[POLICY_FRAME_SIZE]; /* one word per pixel, the oldest frame in the lowest byte */
    int has_frame;
//: elif image
    uint8_t stack[POLICY_STACK_BYTES]; /* pixel after pixel; within a pixel the oldest frame first */
    int has_frame;
//: elif memory
    uint8_t window[POLICY_WINDOW_BYTES]; /* the last observations on the grid of the first layer, plus 128 */
    int has_begun;
//: endif
};

//: for name, result, parameters, arguments in macros.functions
//: set all_parameters = "struct policy_state *state" ~ (", " if parameters else "") ~ parameters
${"%s policy_%s_r(%s);" | format(result, name, all_parameters) | signature}
//: endfor
//#
//: endif
#ifdef __cplusplus
}
#endif

#endif
