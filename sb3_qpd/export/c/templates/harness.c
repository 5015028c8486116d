/* Runs the policy on batches of raw observations on the host. CPolicy compiles it into a shared library. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define POLICY_FLOAT_HELPERS
static uint8_t *trace_to = NULL;
static size_t trace_left = 0;
#define POLICY_TRACE(step, values, n_bytes)                                                                                  \
    do {                                                                                                                     \
        if (trace_to != NULL && (size_t)(n_bytes) > trace_left) {                                                            \
            trace_to = NULL; /* the layers are not those that the caller expects */                                          \
        } else if (trace_to != NULL) {                                                                                       \
            memcpy(trace_to, (values), (n_bytes));                                                                           \
            trace_to += (n_bytes);                                                                                           \
            trace_left -= (size_t)(n_bytes);                                                                                 \
        }                                                                                                                    \
    } while (0)

#include "policy.c"

#ifdef POLICY_FRAME_SIZE
#define IS_IMAGE 1
#define OBSERVATION_SIZE POLICY_STACK_BYTES
#define OBSERVED
#define IS_INDICES 0
typedef uint8_t element;
const int32_t harness_observation[4] = {POLICY_N_FRAMES, POLICY_FRAME_HEIGHT, POLICY_FRAME_WIDTH, POLICY_FRAME_CHANNELS};
#elif defined(POLICY_IS_DICT)
#define IS_IMAGE 0
#define OBSERVATION_SIZE 1
#define OBSERVED grid,
#define IS_INDICES 0
#if POLICY_HAS_RAW_OBSERVATION
typedef struct policy_raw_observation element;
#else
typedef struct policy_observation element;
#endif
const int32_t harness_observation[4] = {1, 1, (int32_t)sizeof(element), 1};
#else
#define IS_IMAGE 0
#define OBSERVATION_SIZE POLICY_OBSERVATION_SIZE
#define OBSERVED grid,
#ifdef POLICY_CATEGORIES
#define IS_INDICES 1
typedef int32_t element;
#elif defined(POLICY_OBSERVATION_ORIGIN)
#define IS_INDICES 0
typedef double element;
#else
#define IS_INDICES 0
typedef float element;
#endif
const int32_t harness_observation[4] = {1, 1, POLICY_OBSERVATION_SIZE, 1};
#endif

#ifdef POLICY_ACTION_SCALE
#define IS_BOX 1
#else
#define IS_BOX 0
#endif

#ifndef POLICY_STACK_BYTES
#define POLICY_STACK_BYTES 0
#endif
#ifdef POLICY_HISTORY
#define STATE_SIZE POLICY_STATE_BYTES
const int32_t harness_ram = POLICY_ARENA_BYTES + POLICY_WINDOW_BYTES;
#else
#define STATE_SIZE 0
const int32_t harness_ram = POLICY_ARENA_BYTES + POLICY_STACK_BYTES;
#endif
const int32_t harness_state_size = STATE_SIZE; /* what a student with a memory remembers */

#ifdef POLICY_N_ACTIONS
#define N_ACTIONS POLICY_N_ACTIONS
#define N_INDICES N_ACTIONS
#else
#define N_ACTIONS 0
#define N_INDICES 1
#endif

/* is image, is Box, is fixed, number of outputs, is indices, number of indices of an action or 0 */
const int32_t harness_kind[6] = {IS_IMAGE, IS_BOX, POLICY_IS_FIXED, POLICY_N_OUTPUTS, IS_INDICES, N_ACTIONS};

#ifdef POLICY_OBSERVATION_ORIGIN
const int32_t harness_is_double = 1;
#else
const int32_t harness_is_double = 0;
#endif

#if IS_IMAGE
static int observe(const element *observation)
{
    int frame, code = POLICY_OK;
    policy_reset();
    for (frame = 0; frame < POLICY_N_FRAMES && code == POLICY_OK; frame++) {
        code = policy_push_frame(observation + frame * POLICY_FRAME_SIZE);
    }
    return code;
}
#elif defined(POLICY_IS_DICT) && POLICY_HAS_RAW_OBSERVATION
static struct policy_observation grid[1];

static int observe(const element *observation)
{
    return policy_quantize(observation, grid);
}
#elif POLICY_IS_FIXED && !IS_INDICES && !defined(POLICY_IS_DICT)
static int8_t grid[POLICY_OBSERVATION_SIZE];

static int observe(const element *observation)
{
    return policy_quantize(observation, grid);
}
#else
static const element *grid;

static int observe(const element *observation)
{
    grid = observation;
    return POLICY_OK;
}
#endif

/* What is remembered at observation i, on the grid of the first layer; NULL: an episode begins. */
static void set_state(const int8_t *states, int64_t i)
{
#if STATE_SIZE
    int at;
    policy_reset();
    for (at = 0; states != NULL && at < STATE_SIZE; at++) {
        POLICY_WINDOW[at] = (uint8_t)(states[i * STATE_SIZE + at] + 128);
    }
#else
    (void)states, (void)i;
#endif
}

/* What is remembered after observation i. */
static void get_state(int8_t *states, int64_t i)
{
#if STATE_SIZE
    int at;
    for (at = 0; states != NULL && at < STATE_SIZE; at++) {
        states[i * STATE_SIZE + at] = (int8_t)(POLICY_WINDOW[at] - 128);
    }
#else
    (void)states, (void)i;
#endif
}

#define HARNESS_OTHER_LAYERS (-100)

int harness_outputs(const element *observations, const int8_t *states, int64_t n, int32_t *outputs)
{
    int64_t i;
    int code = POLICY_OK;
    for (i = 0; i < n && code == POLICY_OK; i++, observations += OBSERVATION_SIZE, outputs += POLICY_N_OUTPUTS) {
        set_state(states, i);
        code = observe(observations);
        code = code == POLICY_OK ? policy_outputs(OBSERVED outputs) : code;
    }
    return code;
}

#ifdef POLICY_USES_MASKS
#define MASK_SIZE POLICY_N_CATEGORIES
#define MASKED masks,
#else
#define MASK_SIZE 0
#define MASKED
#endif

static int act(const uint8_t *masks, const uint32_t *random_bits, int32_t *action, float *box_action)
{
    (void)masks, (void)random_bits, (void)action, (void)box_action;
#if N_ACTIONS
    return random_bits != NULL ? policy_sample(OBSERVED MASKED random_bits, action) : policy_act(OBSERVED MASKED action);
#elif !IS_BOX
    return random_bits != NULL ? policy_sample(OBSERVED MASKED *random_bits, action) : policy_act(OBSERVED MASKED action);
#elif POLICY_IS_FIXED
    {
        int32_t integers[POLICY_N_OUTPUTS];
        const int code = policy_act(OBSERVED integers);
        return code == POLICY_OK ? policy_action_to_float(integers, box_action) : code;
    }
#else
    return policy_act(OBSERVED box_action);
#endif
}

/*
 * Discrete actions are drawn with `random_bits`, one for each index of each action; NULL takes the most probable ones. Box
 * actions are means, in float. `masks` may be NULL. `trace`, if not NULL, receives the bytes of all steps one after the other,
 * `trace_size` in all. `states` and `next_states` are what a student with a memory remembers before and after; each may be NULL.
 */
int harness_act(const element *observations, const int8_t *states, int64_t n, const uint8_t *masks, const uint32_t *random_bits,
                int32_t *actions, float *box_actions, int8_t *next_states, uint8_t *trace, int64_t trace_size)
{
    int64_t i;
    int code = POLICY_OK;
    trace_to = trace;
    trace_left = (size_t)trace_size;
    for (i = 0; i < n && code == POLICY_OK; i++, observations += OBSERVATION_SIZE) {
        const uint32_t *const bits = random_bits == NULL ? NULL : random_bits + i * N_INDICES;
        const uint8_t *const allowed = masks == NULL ? NULL : masks + i * MASK_SIZE;
        set_state(states, i);
        code = observe(observations);
        code = code == POLICY_OK ? act(allowed, bits, actions + i * N_INDICES, box_actions + i * POLICY_N_OUTPUTS) : code;
        get_state(next_states, i);
    }
    if (code == POLICY_OK && trace != NULL && (trace_to == NULL || trace_left != 0)) {
        code = HARNESS_OTHER_LAYERS;
    }
    trace_to = NULL;
    return code;
}

#if defined(POLICY_USES_MASKS) || defined(POLICY_HAS_WEIGHTS)
int harness_weights(const element *observations, const int8_t *states, int64_t n, const uint8_t *masks, uint32_t *weights)
{
    int64_t i;
    int code = POLICY_OK;
    (void)masks;
    for (i = 0; i < n && code == POLICY_OK; i++, observations += OBSERVATION_SIZE, weights += POLICY_N_CATEGORIES) {
#ifdef POLICY_USES_MASKS
        const uint8_t *const allowed = masks == NULL ? NULL : masks + i * POLICY_N_CATEGORIES;
#define ALLOWED allowed,
#else
#define ALLOWED
#endif
        set_state(states, i);
        code = observe(observations);
        code = code == POLICY_OK ? policy_weights(OBSERVED ALLOWED weights) : code;
    }
    return code;
}
#endif

#ifdef POLICY_VALUE_SCALE
int harness_values(const element *observations, const int8_t *states, int64_t n, int32_t *values)
{
    int64_t i;
    int code = POLICY_OK;
    for (i = 0; i < n && code == POLICY_OK; i++, observations += OBSERVATION_SIZE) {
        set_state(states, i);
        code = observe(observations);
        code = code == POLICY_OK ? policy_value(OBSERVED values + i) : code;
    }
    return code;
}
#endif

/* One observation, for the least time of a call: what goes in and what comes out lies here. */
element harness_one_observation[OBSERVATION_SIZE];
uint32_t harness_one_bits[N_INDICES];
int64_t harness_one_action[N_INDICES];
float harness_one_box_action[POLICY_N_OUTPUTS];
int8_t harness_one_state[STATE_SIZE + 1]; /* before the call, and after it */

#if IS_INDICES
int64_t harness_one_indices[OBSERVATION_SIZE];

static int observe_one(void)
{
    int i;
    for (i = 0; i < OBSERVATION_SIZE; i++) {
        const int64_t index = harness_one_indices[i];
        harness_one_observation[i] = index < 0 || index > INT32_MAX ? -1 : (int32_t)index;
    }
    return observe(harness_one_observation);
}
#else
static int observe_one(void)
{
    return observe(harness_one_observation);
}
#endif

int harness_one(int is_drawn)
{
    int32_t action[N_INDICES] = {0};
    int i, code = observe_one();
    set_state(harness_one_state, 0);
    code = code == POLICY_OK ? act(NULL, is_drawn ? harness_one_bits : NULL, action, harness_one_box_action) : code;
    get_state(harness_one_state, 0);
    for (i = 0; i < N_INDICES; i++) {
        harness_one_action[i] = action[i];
    }
    return code;
}
