/*
 * Runs the policy on recorded observations on an emulated microcontroller without operating system. It reads and writes
 * files of the host by semihosting. For each observation it writes outputs, action and the ticks of the clock that the action
 * took; at the end it writes the bytes of call stack.
 */
#include <stddef.h>
#include <stdint.h>

#include "policy.h"

#ifdef POLICY_FRAME_SIZE
typedef uint8_t element;
enum { OBSERVATION_SIZE = POLICY_STACK_BYTES };
#define OBSERVED
#elif defined(POLICY_IS_DICT)
typedef struct policy_observation element;
enum { OBSERVATION_SIZE = 1 };
#define OBSERVED observation,
#elif defined(POLICY_CATEGORIES)
typedef int32_t element;
enum { OBSERVATION_SIZE = POLICY_OBSERVATION_SIZE };
#define OBSERVED observation,
#elif POLICY_IS_FIXED
typedef int8_t element;
enum { OBSERVATION_SIZE = POLICY_OBSERVATION_SIZE };
#define OBSERVED observation,
#elif defined(POLICY_OBSERVATION_ORIGIN)
typedef double element;
enum { OBSERVATION_SIZE = POLICY_OBSERVATION_SIZE };
#define OBSERVED observation,
#else
typedef float element;
enum { OBSERVATION_SIZE = POLICY_OBSERVATION_SIZE };
#define OBSERVED observation,
#endif

#ifdef POLICY_USES_MASKS
#define MASKED NULL, /* all actions are allowed */
#else
#define MASKED
#endif

#ifdef POLICY_ACTION_SCALE
enum { ACTION_SIZE = POLICY_N_OUTPUTS };
#elif defined(POLICY_N_ACTIONS)
enum { ACTION_SIZE = POLICY_N_ACTIONS };
#else
enum { ACTION_SIZE = 1 };
#endif
#if defined(POLICY_ACTION_SCALE) && !POLICY_IS_FIXED
typedef float action_element;
#else
typedef int32_t action_element;
#endif

#ifdef __AVR__
extern uint8_t _end[]; /* of the static memory; RAMEND is the top of the call stack */
#define stack_low ((uint32_t *)(((uintptr_t)_end + 3) & ~(uintptr_t)3))
#else
extern uint32_t stack_low[], stack_top[];
#endif
static element observation[OBSERVATION_SIZE];
static struct {
    int32_t outputs[POLICY_N_OUTPUTS];
    action_element action[ACTION_SIZE];
    uint32_t ticks;
} result;

int main(void);

/* -- processors ----------------------------------------------------------------------------------------------------- */

#ifdef __arm__

static int semihost(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* The SysTick timer counts 24 bits down. */
static volatile uint32_t *const timer = (volatile uint32_t *)0xe000e010;
enum { TICKS = 0xffffff };

static uint32_t ticks(void)
{
    return TICKS - timer[2];
}

void reset(void)
{
#ifdef __ARM_FP
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* enable the FPU */
    __asm__ volatile("dsb\n\tisb");
#endif
#if defined(__ARM_ARCH_6M__)
    *(volatile uint32_t *)0xe000ed14 |= 1u << 3; /* refuse addresses that are not aligned, as an M0+ does */
#endif
    timer[1] = TICKS;
    timer[2] = 0;
    timer[0] = 5; /* the processor's clock, no interrupt */
    (void)main();
}

__attribute__((section(".start"), used)) static const void *const vectors[2] = {stack_top, (const void *)reset};

#elif defined(__AVR__)

#include <avr/io.h>

/* The emulator takes the call when GPIOR0 is written. */
static int semihost(int operation, const void *argument)
{
    GPIOR1 = (uint8_t)(uintptr_t)argument;
    GPIOR2 = (uint8_t)((uintptr_t)argument >> 8);
    __asm__ volatile("" : : "r"(argument) : "memory"); /* the arguments are in memory now */
    GPIOR0 = (uint8_t)operation;
    __asm__ volatile("" : : : "memory");
    return GPIOR1 | GPIOR2 << 8;
}

#define TICKS 0xffffffffu

static uint32_t ticks(void)
{
    enum { SYS_CYCLES = 0x10 };
    volatile uint32_t count;
    (void)semihost(SYS_CYCLES, (const void *)&count);
    return count;
}

#else

static int semihost(int operation, const void *argument)
{
    register int a0 __asm__("a0") = operation;
    register const void *a1 __asm__("a1") = argument;
    __asm__ volatile(
        ".balign 16\n\t.option push\n\t.option norvc\n\tslli x0, x0, 0x1f\n\tebreak\n\tsrai x0, x0, 7\n\t.option pop"
        : "+r"(a0)
        : "r"(a1)
        : "memory");
    return a0;
}

#define TICKS 0xffffffffu

static uint32_t ticks(void)
{
    uint32_t count;
    __asm__ volatile(".option push\n\t.option arch, +zicsr\n\tcsrr %0, minstret\n\t.option pop" : "=r"(count));
    return count;
}

__attribute__((naked, section(".start"), used)) void reset(void)
{
    __asm__ volatile("la sp, stack_top\n\tcall main");
}

#endif

/* -- files ---------------------------------------------------------------------------------------------------------- */

enum { SYS_OPEN = 1, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT = 0x18, MODE_RB = 1, MODE_WB = 5 };

static int open_file(const char *name, uint32_t length, uint32_t mode)
{
    const uint32_t arguments[3] = {(uint32_t)(uintptr_t)name, mode, length};
    return semihost(SYS_OPEN, arguments);
}

/* Read or write a file. Returns the number of bytes that were not transferred. */
static int transfer(int operation, int file, const void *data, uint32_t n_bytes)
{
    const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)(uintptr_t)data, n_bytes};
    return semihost(operation, arguments);
}

/* -- the run -------------------------------------------------------------------------------------------------------- */

static void observe(void)
{
#ifdef POLICY_FRAME_SIZE
    int frame;
    policy_reset();
    for (frame = 0; frame < POLICY_N_FRAMES - 1; frame++) {
        (void)policy_push_frame(observation + frame * POLICY_FRAME_SIZE);
    }
#endif
}

/* The time of this function is measured: push the newest frame (images only), then act. */
static void act(void)
{
    const uint32_t start = ticks();
#ifdef POLICY_FRAME_SIZE
    (void)policy_push_frame(observation + (POLICY_N_FRAMES - 1) * POLICY_FRAME_SIZE);
#endif
    (void)policy_act(OBSERVED MASKED result.action);
    result.ticks = (ticks() - start) & TICKS;
}

int main(void)
{
    static char observations[] = "observations.bin", results[] = "results.bin";
    const int in = open_file(observations, 16, MODE_RB), out = open_file(results, 11, MODE_WB);
    uint32_t *const frame = (uint32_t *)__builtin_frame_address(0) - 32, *deepest;
    for (deepest = stack_low; deepest < frame; deepest++) {
        *deepest = 0xa5a5a5a5u;
    }
    while (transfer(SYS_READ, in, observation, sizeof observation) == 0) {
        observe();
#ifdef POLICY_HISTORY
        (void)policy_outputs(OBSERVED result.outputs); /* after an action, the observation is one of the last ones */
        act();
#else
        act(); /* the newest frame of images is pushed there */
        (void)policy_outputs(OBSERVED result.outputs);
#endif
        (void)transfer(SYS_WRITE, out, &result, sizeof result);
    }
    for (deepest = stack_low; *deepest == 0xa5a5a5a5u; deepest++) {
    }
    result.ticks = (uint32_t)((uint8_t *)__builtin_frame_address(0) - (uint8_t *)deepest);
    (void)transfer(SYS_WRITE, out, &result.ticks, 4);
    (void)semihost(SYS_EXIT, (const void *)(uintptr_t)0x20026u);
    return 0;
}
