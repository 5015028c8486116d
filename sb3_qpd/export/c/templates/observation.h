//: if is_dict
#define POLICY_IS_DICT 1
#define POLICY_HAS_RAW_OBSERVATION ${1 if has_grid and fixed else 0}

/* An observation: a field for each key. */
struct policy_observation {
//: for field in fields
    ${field.c_type} ${field.declarator}; /* "${field.part.key | plain}": ${field.comment} */
//: endfor
};

//: elif fields[0].part.is_image
//: set channels, height, width = model.observation_shape
/* An observation is an image of ${fields[0].comment}. */
#define POLICY_IMAGE_HEIGHT ${height}
#define POLICY_IMAGE_WIDTH ${width}
#define POLICY_IMAGE_CHANNELS ${channels}

//: endif
//: if has_grid and fixed
/*
 * Numbers that are no integers have 8 bits, the input grid of the first layer:
 *
 *     q = clamp(round((x - o) m + a), -128, 127)
 *
 * x is the number in units of the environment, m its multiplier, a its offset, and o its origin, where there is one. Take
 * the origin off in double or in integers: a float cannot carry x. An image has one m and one a for all of its pixels.
 */
//: elif has_origin
/* A double is a number that a float cannot carry. Its origin is taken off before the rest becomes float. */
//: endif
//: for field in fields if field.has_grid
//: if fixed
#define ${field.macro("MULTIPLIER")} ${field.multiplier | floats | inline}
#define ${field.macro("OFFSET")} ${field.offset | floats | inline}
//: endif
//: if field.origin is not none
#define ${field.macro("ORIGIN")} ${field.origin | doubles | inline}
//: endif
//: endfor
//: if has_grid and fixed or has_origin
//#
//: endif
//: if has_grid and fixed
/*
 * Convert numbers of 16 bits to the grid: q = (v + 128) / 256, rounded down. A number counts 1/256 of a grid step:
 * v = 256 ((x - o) m + a), or x = (v / 256 - a) / m + o.
 */
int policy_quantize_int16(${macros.quantize_int16_parameters});

//: if is_dict
/* An observation in units of the environment, for policy_quantize. */
struct policy_raw_observation {
//: for field in fields
    ${field.raw_type} ${field.declarator};
//: endfor
};

//: endif
/* Convert an observation. Compile policy.c with -D POLICY_FLOAT_HELPERS; nothing else uses floating point. */
#ifdef POLICY_FLOAT_HELPERS
int policy_quantize(${macros.quantize_parameters});
#endif

//: endif
