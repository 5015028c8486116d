//: import "macros.h" as macros with context
//: set no_state = "state == NULL || " if reentrant else ""
/* -- memory --------------------------------------------------------------------------------------------------------- */

/*
 * The window is the input of the first layer, which reads it where it lies. The oldest observation comes first. The end is the
 * place of the newest one, which has a meaning within a call only.
 */
enum { STEP_BYTES = ${memory.step_bytes}, NEWEST = ${memory.state_bytes} };

//: if memory.nvec or memory.is_bits
/* Bytes that stand for a category of an action: where it was not taken, and where it was. */
static const uint8_t absent_before[${memory.n_action}] POLICY_FLASH = ${memory.absent | integers | inline};
static const uint8_t present_before[${memory.n_action}] POLICY_FLASH = ${memory.present | integers | inline};
//: if memory.nvec
static const uint32_t categories_before[${memory.nvec | length}] POLICY_FLASH = ${memory.nvec | integers | inline};
//: endif
//#
//: elif memory.n_action and fixed
/* An action on the grid of the first layer is the number of these steps that it reaches, up or down from the first byte. */
static const int32_t action_steps[${memory.steps | length}] POLICY_FLASH = ${memory.steps | integers | block};
static const uint32_t end_of_steps[${memory.n_action}] POLICY_FLASH = ${memory.ends | integers | inline};
static const uint8_t first_byte[${memory.n_action}] POLICY_FLASH = ${memory.first | integers | inline};
static const uint8_t is_falling[${memory.n_action}] POLICY_FLASH = ${memory.falls | integers | inline};

/* The number of steps from `low` to before `end` that are not above the action. They are sorted. */
static uint32_t steps_reached(uint32_t low, uint32_t end, int32_t action)
{
    const uint32_t start = low;
    while (low < end) {
        const uint32_t middle = low + (end - low) / 2;
        if ((int32_t)POLICY_READ_32(action_steps + middle) <= action) {
            low = middle + 1;
        } else {
            end = middle;
        }
    }
    return low - start;
}

//: elif memory.n_action
static const float multiplier_before[${memory.n_action}] POLICY_FLASH = ${memory.multiplier | floats | inline};
static const float offset_before[${memory.n_action}] POLICY_FLASH = ${memory.offset | floats | inline};

//: endif
void policy_reset${macros.r}(${"struct policy_state *state" if reentrant else "void"})
{
//: if reentrant
    if (state == NULL) {
        return;
    }
//: endif
    memset(${held}window, 128, sizeof ${held}window); /* the zero of the grid */
    ${held}has_begun = 1;
}

/* The place of the newest observation. */
static uint8_t *newest(${"struct policy_state *state" if reentrant else "void"})
{
    if (!${held}has_begun) {
        policy_reset${macros.r}(${"state" if reentrant});
    }
    return ${held}window + NEWEST;
}

/* The newest observation becomes one of those before${", with the action that was taken" if memory.n_action}. */
static void move_on(${macros.remembered_parameters})
{
//: if memory.n_action
    uint8_t *const to = ${held}window + NEWEST - ${memory.n_action};
//: if not memory.nvec and (memory.is_bits or fixed)
    uint32_t i${", start = 0" if not memory.is_bits};
//: endif
//: endif
    memmove(${held}window, ${held}window + STEP_BYTES, sizeof ${held}window - STEP_BYTES);
//: if memory.nvec
    (void)put_indices(to, action, categories_before, absent_before, present_before, ${memory.nvec | length});
//: elif memory.is_bits
    for (i = 0; i < ${memory.n_action}; i++) {
        to[i] = POLICY_READ_8((action[i] != 0 ? present_before : absent_before) + i);
    }
//: elif memory.n_action and fixed
    for (i = 0; i < ${memory.n_action}; i++) {
        const uint32_t end = POLICY_READ_32(end_of_steps + i), n = steps_reached(start, end, action[i]);
        const uint32_t first = POLICY_READ_8(first_byte + i);
        to[i] = (uint8_t)(POLICY_READ_8(is_falling + i) ? first - n : first + n);
        start = end;
    }
//: elif memory.n_action
    (void)put_floats(to, action, multiplier_before, offset_before, 1, ${memory.n_action});
//: endif
}

${"int policy_remember%s(%s)" | format(macros.r, macros.remember_parameters) | signature}
{
//: set no_action = " || action == NULL" if memory.n_action else ""
//: if is_checked
    const int code = ${no_state}observation == NULL${no_action} ? POLICY_NULL_POINTER : check(observation);
    if (code != POLICY_OK) {
        return code;
    }
//: else
    if (${no_state}observation == NULL${no_action}) {
        return POLICY_NULL_POINTER;
    }
//: endif
//: if memory.nvec
    if (!are_categories(action, categories_before, ${memory.nvec | length})) {
        return POLICY_NO_CATEGORY;
    }
//: elif memory.n_action and memory.is_box and not fixed
    if (!are_finite(action, ${memory.n_action})) {
        return POLICY_NOT_FINITE;
    }
//: endif
    read_trunk_0(observation, newest(${"state" if reentrant}));
    move_on(${"state" if reentrant}${", " if reentrant and memory.n_action}${"action" if memory.n_action});
    return POLICY_OK;
}

/* Where a test harness finds the window. */
#define POLICY_WINDOW ${"own_state." if reentrant}window

