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
//: if masks
    POLICY_NO_ACTION = -5, /* of an index of the action no category is allowed */
//: endif
//: if several_fields
    POLICY_NOT_FINITE = -2, /* the observation holds NaN or infinity */
    POLICY_NO_CATEGORY = -4 /* an index of the observation is negative, or not below its number of categories */
//: elif vector
    POLICY_NOT_FINITE = -2 /* the observation holds NaN or infinity */
//: elif indices
    POLICY_NO_CATEGORY = -4 /* an index of the observation is negative, or not below its number of categories */
//: else
    POLICY_NO_FRAME = -3 /* no frame was pushed after the last policy_reset */
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
//: if indices
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

//: elif several_fields
//: include "observation.h"
//: elif vector and fixed
/*
 * An observation has 8 bits for each feature, the input grid of the first layer:
 *
//: if has_origin
 *     q = clamp(round((x - o) m + a), -128, 127)
 *
 * x is the feature in units of the environment, o its origin, m its multiplier and a its offset. Take the origin off in
 * double or in integers: a float cannot carry x.
 */
#define POLICY_OBSERVATION_ORIGIN ${model.input_origin | doubles | inline}
//: else
 *     q = clamp(round(x m + a), -128, 127)
 *
 * x is the feature in units of the environment, m its multiplier and a its offset.
 */
//: endif
#define POLICY_OBSERVATION_MULTIPLIER ${model.input_multiplier | floats | inline}
#define POLICY_OBSERVATION_OFFSET ${model.input_offset | floats | inline}

/*
 * Convert features of 16 bits to the grid: q = (n + 128) / 256, rounded down. A feature counts 1/256 of a grid step:
//: if has_origin
 * n = 256 ((x - o) m + a), or x = (n / 256 - a) / m + o.
//: else
 * n = 256 (x m + a), or x = (n / 256 - a) / m.
//: endif
 */
int policy_quantize_int16(const int16_t observation[POLICY_OBSERVATION_SIZE], int8_t grid[POLICY_OBSERVATION_SIZE]);

//: elif has_origin
/* Observations are double: a float cannot carry their values. This origin is taken off before the rest becomes float. */
#define POLICY_OBSERVATION_ORIGIN ${model.input_origin | doubles | inline}

//: endif
//: if fixed and (vector or box or several_fields and has_grid)
/* Conversions from and to float. Compile policy.c with -DPOLICY_FLOAT_HELPERS; nothing else uses floating point. */
#ifdef POLICY_FLOAT_HELPERS
//: if vector
int policy_quantize(const ${real_type} observation[POLICY_OBSERVATION_SIZE], int8_t grid[POLICY_OBSERVATION_SIZE]);
//: elif is_dict and has_grid
int policy_quantize(const struct policy_raw_observation *observation, struct policy_observation *grid);
//: elif several_fields and has_grid
int policy_quantize(const float observation[POLICY_OBSERVATION_SIZE], int8_t grid[POLICY_OBSERVATION_SIZE]);
//: endif
//: if box
int policy_action_to_float(const int32_t action[POLICY_N_OUTPUTS], float result[POLICY_N_OUTPUTS]);
//: endif
#endif

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
//: else
 * It needs no initialization, and holds nothing between two calls.
//: endif
 * With -DPOLICY_ONLY_REENTRANT, policy.c leaves out the functions above, and has no static memory.
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
