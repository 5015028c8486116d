//: import "macros.h" as macros with context
//: set observed = "const struct policy_observation *observation" if is_dict else "const " ~ observation_type ~ " *observation"
//: set unit = "int8_t" if fixed else "uint8_t"
//: set has_floats = fields | selectattr("raw_type", "equalto", "float") | list
//: set finite_actions = memory and memory.is_box and not fixed
/* -- observations ---------------------------------------------------------------------------------------------------- */

//: for field in fields if field.kind == "one_hot"
/* Bytes that stand for a category of ${field.name}: where it is not the index, and where it is. */
static const uint8_t absent_in_${field.name}[${field.absent | length}] POLICY_FLASH = ${field.absent | integers | inline};
static const uint8_t present_in_${field.name}[${field.present | length}] POLICY_FLASH = ${field.present | integers | inline};
static const uint32_t categories_of_${field.name}[${field.size}] POLICY_FLASH = ${field.part.nvec | integers | inline};

//: endfor
//: if has_indices or memory and memory.nvec
static int are_categories(const int32_t *indices, const uint32_t *categories, uint32_t n)
{
    uint32_t i;
    for (i = 0; i < n; i++) {
        if (indices[i] < 0 || (uint32_t)indices[i] >= POLICY_READ_32(categories + i)) {
            return 0;
        }
    }
    return 1;
}

static uint8_t *put_indices(uint8_t *in, const int32_t *indices, const uint32_t *categories, const uint8_t *absent,
                            const uint8_t *present, uint32_t n)
{
    uint32_t i, category, feature = 0;
    for (i = 0; i < n; i++) {
        for (category = 0; category < POLICY_READ_32(categories + i); category++, feature++) {
            in[feature] = POLICY_READ_8((category == (uint32_t)indices[i] ? present : absent) + feature);
        }
    }
    return in + feature;
}

//: endif
//: if has_grid and fixed
/* 128 is added to the grid, so that inputs are never negative; the biases of the first layer subtract it. */
static uint8_t *put_grid(uint8_t *in, const int8_t *grid, uint32_t n)
{
    uint32_t i;
    for (i = 0; i < n; i++) {
        in[i] = (uint8_t)(grid[i] + 128);
    }
    return in + n;
}

#ifdef POLICY_FLOAT_HELPERS

//: endif
//: for field in fields if field.has_grid
//: set array = "[%d]" | format(field.multiplier | length)
static const float multiplier_of_${field.name}${array} POLICY_FLASH = ${field.multiplier | floats | inline};
static const float offset_of_${field.name}${array} POLICY_FLASH = ${field.offset | floats | inline};
//: if field.origin is not none
static const double origin_of_${field.name}${array} = ${field.origin | doubles | inline};
//: endif
//: endfor
//#
//: if has_floats or finite_actions
static int are_finite(const float *values, uint32_t n)
{
    uint32_t i, bits;
    for (i = 0; i < n; i++) {
        memcpy(&bits, values + i, 4);
        if ((bits & 0x7f800000u) == 0x7f800000u) {
            return 0;
        }
    }
    return 1;
}

//: endif
//: if has_grid or finite_actions
/* clamp(round(x m + a), -128, 127), half to even. `volatile`, or assembler, prevents a fused x m + a, which would round once. */
static int32_t to_grid(float x, float multiplier, float offset)
{
#if POLICY_VFP
    float scaled, shifted;
    int32_t rounded;
    __asm__("vmul.f32 %0, %1, %2" : "=t"(scaled) : "t"(x), "t"(multiplier));
    shifted = scaled + offset;
    __asm__("vcvtr.s32.f32 %0, %1" : "=t"(shifted) : "t"(shifted));
    memcpy(&rounded, &shifted, 4);
    __asm__("ssat %0, #8, %1" : "=r"(rounded) : "r"(rounded));
    return rounded;
#else
    const volatile float scaled = x * multiplier;
    const float shifted = scaled + offset;
    const float clamped = shifted < -128.0f ? -128.0f : (shifted > 127.0f ? 127.0f : shifted);
    const float rounded = clamped + 12582912.0f; /* 1.5 2^23: the last bit of the mantissa counts 1 */
    int32_t bits;
    memcpy(&bits, &rounded, 4);
    return bits - 0x4b400000;
#endif
}

//: endif
//: set shift = "" if fixed else " + 128"
//: if has_floats or finite_actions
//: if not fixed
/* 128 is added to the grid, so that inputs are never negative; the biases of the first layer subtract it. */
//: endif
/* `each` is 1 if each number has a multiplier and an offset, and 0 if all have the same. */
static ${unit} *put_floats(
    ${unit} *in, const float *values, const float *multiplier, const float *offset, uint32_t each, uint32_t n)
{
    uint32_t i;
    for (i = 0; i < n; i++) {
        in[i] = (${unit})(to_grid(values[i], POLICY_READ_FLOAT(multiplier + i * each), POLICY_READ_FLOAT(offset + i * each))${shift});
    }
    return in + n;
}

//: endif
//: if has_origin
/* The processor's double, and its constants: not with -fsingle-precision-constant or -fshort-double, and not on AVR. */
typedef char policy_needs_double_of_64_bits[sizeof(double) == 8 && sizeof(1.0) == 8 ? 1 : -1];

/* From 2^128 - 2^103 on, a double becomes an infinite float. */
static int are_finite_beyond(const double *values, const double *origin, uint32_t n)
{
    uint32_t i;
    for (i = 0; i < n; i++) {
        const double rest = values[i] - origin[i];
        if (!(rest > -3.4028235677973366e+38 && rest < 3.4028235677973366e+38)) {
            return 0;
        }
    }
    return 1;
}

static ${unit} *put_doubles(
    ${unit} *in, const double *values, const double *origin, const float *multiplier, const float *offset, uint32_t n)
{
    uint32_t i;
    for (i = 0; i < n; i++) {
        in[i] = (${unit})(to_grid((float)(values[i] - origin[i]), POLICY_READ_FLOAT(multiplier + i), POLICY_READ_FLOAT(offset + i))${shift});
    }
    return in + n;
}

//: endif
//: macro is_finite(field, pointer)
//: if field.origin is none
are_finite(${field.of(pointer)}, ${field.size})
//:- else
are_finite_beyond(${field.of(pointer)}, origin_of_${field.name}, ${field.size})
//:- endif
//:- endmacro
//: macro put(field, to, pointer)
//: set affine = "multiplier_of_%s, offset_of_%s" | format(field.name, field.name)
//: if field.origin is none
put_floats(${to}, ${field.of(pointer)}, ${affine}, ${field.affine}, ${field.size})
//:- else
put_doubles(${to}, ${field.of(pointer)}, origin_of_${field.name}, ${affine}, ${field.size})
//:- endif
//:- endmacro
//: if has_grid and fixed
int policy_quantize(${macros.quantize_parameters})
{
    if (observation == NULL || grid == NULL) {
        return POLICY_NULL_POINTER;
    }
//: for field in fields if field.has_grid
    if (!${is_finite(field, "observation")}) {
        return POLICY_NOT_FINITE;
    }
//: endfor
//: for field in fields
//: if field.has_grid
    (void)${put(field, field.of("grid"), "observation")};
//: elif field.is_scalar
    grid->${field.name} = observation->${field.name};
//: else
    memcpy(grid->${field.name}, observation->${field.name}, sizeof grid->${field.name});
//: endif
//: endfor
    return POLICY_OK;
}

#endif

int policy_quantize_int16(${macros.quantize_int16_parameters})
{
    uint32_t i;
    if (values == NULL || grid == NULL) {
        return POLICY_NULL_POINTER;
    }
    for (i = 0; i < ${"POLICY_OBSERVATION_SIZE" if is_vector else "n"}; i++) {
        const int32_t rounded = (values[i] + 32768 + 128) / 256 - 128;
        grid[i] = (int8_t)(rounded < 127 ? rounded : 127);
    }
    return POLICY_OK;
}

//: endif
//: if is_checked
/* A code for an observation that the policy cannot take. */
static int check(${observed})
{
//: for field in fields
//: if field.kind == "one_hot"
    if (!are_categories(${field.of("observation")}, categories_of_${field.name}, ${field.size})) {
        return POLICY_NO_CATEGORY;
    }
//: elif field.has_grid and not fixed
    if (!${is_finite(field, "observation")}) {
        return POLICY_NOT_FINITE;
    }
//: endif
//: endfor
    return POLICY_OK;
}

//: endif
//: for chain in chains if chain.trunk.is_copied
/* The input of ${(chain.layers[0][0] if chain.layers else head_layer).name}${", the newest observation in it" if memory}: ${chain.n_read} bytes. */
static void read_trunk_${chain.number}(${observed}, uint8_t *in)
{
//: for field in chain.fields
//: set begin = "(void)" if loop.last else "in = "
//: if field.kind == "one_hot"
//: set tables = "categories_of_%s, absent_in_%s, present_in_%s" | format(field.name, field.name, field.name)
    ${begin}put_indices(in, ${field.of("observation")}, ${tables}, ${field.size});
//: elif fixed
    ${begin}put_grid(in, ${field.of("observation")}, ${field.size});
//: else
    ${begin}${put(field, "in", "observation")};
//: endif
//: endfor
}

//: endfor
