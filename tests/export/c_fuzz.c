/* Random and adversarial observations, as many as the first argument says: for the sanitizers. Bad ones must be refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy.h"

static uint32_t state = 1;

static uint32_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static void fill(void *to, size_t n_bytes, int kind)
{
    static const float extremes[] = {0.0f, -0.0f, 1e-45f, 3.4e38f, -3.4e38f, 1.0f, -1.0f, 1e9f};
    uint8_t *bytes = (uint8_t *)to;
    size_t i;
    if (kind == 0 || kind == 1) { /* all minimum, all maximum */
        memset(to, kind == 0 ? 0x80 : 0x7f, n_bytes);
    } else if (kind == 2) {
        memset(to, 0xff, n_bytes); /* NaN */
    } else if (kind == 3 && n_bytes % 4 == 0) {
        for (i = 0; i < n_bytes; i += 4) {
            memcpy(bytes + i, &extremes[next_random() % 8], 4);
        }
    } else {
        for (i = 0; i < n_bytes; i++) {
            bytes[i] = (uint8_t)(next_random() >> 24);
        }
    }
}

int main(int argc, char **argv)
{
    const long n = argc > 1 ? atol(argv[1]) : 100;
    long i, refused = 0;
    for (i = 0; i < n; i++) {
        int code;
#ifdef POLICY_ACTION_SCALE
#if POLICY_IS_FIXED
        int32_t action[POLICY_N_OUTPUTS];
#else
        float action[POLICY_N_OUTPUTS];
#endif
#else
        int32_t action[1], sample;
#endif
#ifdef POLICY_FRAME_SIZE
        static uint8_t frame[POLICY_FRAME_SIZE];
        fill(frame, sizeof frame, (int)(i % 8));
        if (i % 50 == 0) {
            policy_reset();
            refused += policy_act(action) == POLICY_NO_FRAME;
        }
        code = policy_push_frame(frame);
        if (code == POLICY_OK) {
            code = policy_act(action);
        }
#ifndef POLICY_ACTION_SCALE
        code = code == POLICY_OK ? policy_sample(next_random(), &sample) : code;
#endif
#else
#if POLICY_IS_FIXED
        int8_t observation[POLICY_OBSERVATION_SIZE];
        int16_t integers[POLICY_OBSERVATION_SIZE];
        fill(integers, sizeof integers, (int)(i % 8));
        (void)policy_quantize_int16(integers, observation);
        (void)policy_act(observation, action);
#else
        float observation[POLICY_OBSERVATION_SIZE];
#endif
        fill(observation, sizeof observation, (int)(i % 8));
        code = policy_act(observation, action);
#ifndef POLICY_ACTION_SCALE
        code = code == POLICY_OK ? policy_sample(observation, next_random(), &sample) : code;
#endif
#endif
        refused += code != POLICY_OK;
    }
    printf("%ld of %ld refused\n", refused, n);
    return 0;
}
