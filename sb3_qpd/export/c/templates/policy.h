//: import "macros.h" as macros with context
/*
 * ${macros.title()}
 *
 * Written by sb3_qpd ${version}. C99, no heap, no library but <string.h>. Nothing here may be called from two threads at once.
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
//: if vector
    POLICY_NOT_FINITE = -2 /* the observation holds NaN or infinity */
//: elif indices
    POLICY_NO_CATEGORY = -4 /* the observation holds a number that is none of its categories */
//: else
    POLICY_NO_FRAME = -3 /* no frame was pushed since the last policy_reset */
//: endif
};

//: if image
//: set channels, height, width = model.observation_shape
#define POLICY_FRAME_HEIGHT ${height}
#define POLICY_FRAME_WIDTH ${width}
#define POLICY_FRAME_CHANNELS ${channels // n_frames} /* interleaved: R G B R G B ... */
#define POLICY_FRAME_SIZE (POLICY_FRAME_HEIGHT * POLICY_FRAME_WIDTH * POLICY_FRAME_CHANNELS)
#define POLICY_N_FRAMES ${n_frames} /* that make an observation */
#define POLICY_STACK_BYTES (POLICY_FRAME_SIZE * POLICY_N_FRAMES) /* static RAM of the frames */
//: else
#define POLICY_OBSERVATION_SIZE ${observation_size}
//: endif
//: if indices
//: set categories = model.parts[0].nvec | integers | inline
#define POLICY_CATEGORIES ${categories} /* an observation is indices, each of 0 to its number of categories - 1 */
//: endif
#define POLICY_N_OUTPUTS ${layers[-1].n_out}
//: if fixed
#define POLICY_IS_FIXED 1 /* no floating point, but for helpers that have to be asked for */
//: else
#define POLICY_IS_FIXED 0 /* float32 where sums are brought to the next layer's grid */
//: endif
//: set head = model.layers[-1]
#define POLICY_ARENA_BYTES ${arena_bytes} /* static RAM that the layers share */

//: if discrete
/* Outputs are logits in this unit. */
#define POLICY_OUTPUT_SCALE ${head.multiplier[0] | floats}

//: elif several
#define POLICY_N_ACTIONS ${model.action_nvec | length} /* indices that make an action */
#define POLICY_ACTION_CATEGORIES ${model.action_nvec | integers | inline}
//: if model.n_bits
/* Outputs are the logits of 1, in this unit; those of 0 are 0. */
//: else
/* Outputs are the logits of every category of one index after the other, in this unit. */
//: endif
#define POLICY_OUTPUT_SCALE ${head.multiplier[0] | floats}

//: else
/* Outputs are the mean action in these units, before it is clipped to the bounds. */
#define POLICY_ACTION_SCALE ${head.multiplier | floats | inline}
#define POLICY_ACTION_LOW ${model.action_low | floats | inline}
#define POLICY_ACTION_HIGH ${model.action_high | floats | inline}
/* Standard deviation of the policy that was trained; policy_act returns the mean. */
#define POLICY_ACTION_STD ${model.action_std | floats | inline}

//: endif
//: if image
/* Forget all frames: the stack is zero, as at the start of an episode under SB3's VecFrameStack. */
void policy_reset(void);

/*
 * Make a frame the newest of the stack; the oldest one is dropped.
 * (An environment that repeats its first frame: push it POLICY_N_FRAMES times after policy_reset.)
 */
int policy_push_frame(const uint8_t frame[POLICY_FRAME_SIZE]);

//: elif vector and fixed
/*
 * Observations are on the grid of the first layer, 8 bits for each feature:
 *
 *     q = clamp(round(x m + a), -128, 127)
 *
 * with x in units of the environment and these numbers for each feature.
 */
#define POLICY_OBSERVATION_MULTIPLIER ${model.input_multiplier | floats | inline}
#define POLICY_OBSERVATION_OFFSET ${model.input_offset | floats | inline}

/*
 * To the grid from 16-bit numbers in units of 1/256 of a grid step: n = 256 (x m + a), that is x = (n / 256 - a) / m.
 * q = (n + 128) / 256, rounded down.
 */
int policy_quantize_int16(const int16_t observation[POLICY_OBSERVATION_SIZE], int8_t grid[POLICY_OBSERVATION_SIZE]);

//: endif
//: if fixed and (vector or box)
/* For those who have floats; policy.c has to be compiled with -DPOLICY_FLOAT_HELPERS. Nothing else uses floating point. */
#ifdef POLICY_FLOAT_HELPERS
//: if vector
int policy_quantize(const float observation[POLICY_OBSERVATION_SIZE], int8_t grid[POLICY_OBSERVATION_SIZE]);
//: endif
//: if box
int policy_action_to_float(const int32_t action[POLICY_N_OUTPUTS], float result[POLICY_N_OUTPUTS]);
//: endif
#endif

//: endif
/*
 * The integers of the last layer.
 *
 * Every function returns POLICY_OK, or a negative code and leaves its results as they were.
 */
int policy_outputs(${macros.observation_parameter}int32_t outputs[POLICY_N_OUTPUTS]);

//: if discrete
/* The most probable action: the index of the largest output. */
int policy_act(${macros.observation_parameter}int32_t *action);

/* An action drawn from the policy's distribution, in integers alone. random_bits: 32 uniform bits, new ones for each call. */
int policy_sample(${macros.observation_parameter}uint32_t random_bits, int32_t *action);

//: elif several
/* The most probable action. */
int policy_act(${macros.observation_parameter}int32_t action[POLICY_N_ACTIONS]);

/* An action drawn from the policy's distribution, in integers alone. random_bits: 32 uniform bits for each index. */
int policy_sample(
    ${macros.observation_parameter}const uint32_t random_bits[POLICY_N_ACTIONS], int32_t action[POLICY_N_ACTIONS]);

//: else
/* The mean action in units of ${"POLICY_ACTION_SCALE" if fixed else "the environment"}, within its bounds. */
int policy_act(${macros.observation_parameter}${action_type} action[POLICY_N_OUTPUTS]);

//: endif
#ifdef __cplusplus
}
#endif

#endif
