/*
 * A policy in integer arithmetic, written by sb3_qpd. It is one ES module without dependencies, for browsers, node and engines.
 *
 *     import { act, sample, outputs, student } from "./policy.mjs";
 *     const action = act(observation);
 *
 * A student with a memory acts as a Policy, one for each environment:
 *
 *     import { Policy } from "./policy.mjs";
 *     const policy = new Policy();
 *     const action = policy.act(observation); // and policy.reset() at the start of each episode
 *
 * It computes the bits of sb3_qpd's IntegerModel. Sums stay within int32. A product of two float32 is exact in a double, so
 * Math.fround rounds it once; the same holds for the sum of two float32. Products beyond 2^53 are computed in two parts.
 */

export const student = null;

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const ROUNDER = 1.5 * 2 ** 52; // added and subtracted again, it rounds small numbers to integers, half to even
const LOWEST = -(2 ** 53); // below every score

// -- numbers ---------------------------------------------------------------------------------------------------------

/** A DataView of unpadded base64. */
function decode(text) {
  const view = new DataView(new ArrayBuffer((text.length * 6) >> 3));
  let bits = 0;
  let n = 0;
  let used = 0;
  for (const letter of text) {
    bits = ((bits << 6) | ALPHABET.indexOf(letter)) & 0xffff;
    n += 6;
    if (n >= 8) {
      n -= 8;
      view.setUint8(used++, (bits >> n) & 255);
    }
  }
  return view;
}

/** The numbers of one little-endian type, such as "Float32". */
function numbers(text, type, size) {
  const view = decode(text);
  return Array.from({ length: view.byteLength / size }, (_, i) => view[`get${type}`](i * size, true));
}

/** Signed integers of 2 to 8 bits, from a little-endian stream in which they are 2^(bits - 1) higher. */
function unpack(view, start, bits, size) {
  const values = new Int8Array(size);
  for (let i = 0; i < size; i++) {
    const at = i * bits;
    const first = start + (at >> 3);
    const two = view.getUint8(first) | (first + 1 < view.byteLength ? view.getUint8(first + 1) << 8 : 0);
    values[i] = ((two >> (at & 7)) & (2 ** bits - 1)) - 2 ** (bits - 1);
  }
  return values;
}

/** round(x), half to even, then clamped: the bounds are integers. */
function toGrid(x, low, high) {
  return x <= low ? low : x >= high ? high : x + ROUNDER - ROUNDER;
}

/**
 * floor((n m + 2^(shift - 1)) / 2^shift) for n below 2^32 and m below 2^31. It is exact up to 4096. Beyond, it may be any
 * larger number: a shift below 17 comes with an m of at least 2^13, which brings all n but zero there.
 */
function scaled(n, m, shift) {
  if (shift < 17) return n > 0 && m > 0 ? 8192 : 0;
  const low = n * (m & 0xffff); // below 2^48
  const high = n * (m >>> 16) + Math.floor(low / 65536); // below 2^48
  return Math.floor((high + 2 ** (shift - 17)) / 2 ** (shift - 16));
}

/** floor(n bits / 2^32) for two numbers below 2^32. */
function share(n, bits) {
  return Math.floor((n * Math.floor(bits / 65536) + Math.floor((n * (bits % 65536)) / 65536)) / 65536);
}

// -- the network -----------------------------------------------------------------------------------------------------

/** Layers with their numbers, and where each input of a convolution lies. */
function readLayers() {
  const weights = decode(student.weights);
  const biases = numbers(student.biases, "Int32", 4);
  const multipliers = numbers(student.multipliers, "Float32", 4);
  const factors = numbers(student.factors, "Uint32", 4);
  const shifts = numbers(student.shifts, "Uint8", 1);
  let [bytes, channels, units] = [0, 0, 0];
  return student.layers.map((layer) => {
    const [nOut, ...kernel] = layer.shape;
    const nIn = kernel.reduce((product, n) => product * n, 1);
    const read = {
      ...layer,
      ...(kernel.length > 1 ? windows(layer) : { places: Int32Array.from({ length: nIn }, (_, i) => i), starts: [0] }),
      nOut,
      nIn,
      weight: unpack(weights, bytes, layer.bits, nOut * nIn),
      bias: Int32Array.from(biases.slice(channels, channels + nOut)),
      multiplier: multipliers.slice(units, units + layer.nUnits),
      factor: factors.slice(channels, channels + nOut),
      shift: shifts.slice(channels, channels + nOut),
    };
    bytes += Math.ceil((nOut * nIn * layer.bits) / 8);
    channels += nOut;
    units += layer.nUnits;
    return read;
  });
}

/** Where the inputs under the kernel lie, counted from the first one; and where that one lies, for each output. */
function windows({ shape, stride, input }) {
  const [, nChannels, size] = shape;
  const [, height, width] = input;
  const places = new Int32Array(nChannels * size * size);
  for (let i = 0; i < places.length; i++) {
    const column = i % size;
    const row = Math.floor(i / size) % size;
    places[i] = (Math.floor(i / (size * size)) * height + row) * width + column;
  }
  const starts = [];
  for (let row = 0; row + size <= height; row += stride) {
    for (let column = 0; column + size <= width; column += stride) starts.push(row * width + column);
  }
  return { places, starts: Int32Array.from(starts) };
}

const layers = readLayers();
const grid = {
  multiplier: numbers(student.inputMultiplier, "Float32", 4),
  offset: numbers(student.inputOffset, "Float32", 4),
  origin: numbers(student.inputOrigin, "Float64", 8),
};
const box = {
  low: numbers(student.actionLow, "Float32", 4),
  high: numbers(student.actionHigh, "Float32", 4),
  std: numbers(student.actionStd, "Float32", 4),
};

/** Several arrays as one. */
function joined(arrays) {
  return arrays.length === 1 ? arrays[0] : [].concat(...arrays.map((x) => Array.from(x)));
}

/** The accumulator of one output at one place. */
function accumulate(layer, x, channel, start) {
  const { weight, places, nIn } = layer;
  const row = channel * nIn;
  let sum = layer.bias[channel];
  for (let i = 0; i < nIn; i++) sum = (sum + Math.imul(weight[row + i], x[start + places[i]])) | 0;
  return sum;
}

/** All outputs of a hidden layer, channels first. */
function hidden(layer, x) {
  const { nOut, starts, top } = layer;
  const y = new Int32Array(nOut * starts.length);
  let used = 0;
  for (let channel = 0; channel < nOut; channel++) {
    for (const start of starts) {
      const sum = accumulate(layer, x, channel, start);
      y[used++] = student.isFixed
        ? Math.min(top, scaled(Math.max(sum, 0), layer.factor[channel], layer.shift[channel]))
        : toGrid(Math.fround(Math.fround(sum) * layer.multiplier[channel]), 0, top);
    }
  }
  return y;
}

/**
 * The accumulators of the head; what every layer computes is handed to `see`. A student with a memory sees the `state` of its
 * Policy and then the observation.
 */
function accumulators(observation, state, see = () => {}) {
  const features = [];
  for (const trunk of student.trunks) {
    let x = inputGrid(trunk, observation);
    if (student.history > 1) x = Int32Array.from([...state, ...x]);
    see(x);
    for (let i = trunk.first; i < trunk.end; i++) {
      x = hidden(layers[i], x);
      see(x);
    }
    features.push(x);
  }
  const head = layers[layers.length - 1];
  const all = Int32Array.from(joined(features));
  const sums = Int32Array.from({ length: head.nOut }, (_, channel) => accumulate(head, all, channel, 0));
  see(sums);
  return sums;
}

// -- observations ----------------------------------------------------------------------------------------------------

/** A trunk's input in integers: 0 to 255 of an image, else -128 to 127. */
function inputGrid(trunk, observation) {
  const values = trunk.parts.map((part) => read(part, observation));
  const features = joined(values);
  if (trunk.parts[0].kind === "image") return Int32Array.from(features); // one type: engines compile one loop for it
  const step = trunk.parts[0].kind === "float_image" ? 0 : 1; // an image has one multiplier and one offset
  return Int32Array.from(features, (x, i) => quantized(x, trunk.firstFeature + i * step));
}

/** A number on the input grid of a feature. */
function quantized(x, feature) {
  return toGrid(Math.fround(Math.fround(x * grid.multiplier[feature]) + grid.offset[feature]), -128, 127);
}

/** The checked values of a part: pixels, zeros and ones, or float32. */
function read(part, observation) {
  const what = part.key === null ? "the observation" : `the observation of "${part.key}"`;
  const given = part.key === null ? observation : ownValue(observation, part.key);
  if (given === undefined || given === null) throw new TypeError(`${what} is missing`);
  const flat = Array.isArray(given) ? given.flat(Infinity) : typeof given === "object" ? given : [given];
  if (flat.length !== part.size) {
    throw new RangeError(`${what} must have ${part.size} numbers (shape [${part.given}]), got ${flat.length}`);
  }
  const value = (i) => {
    const x = flat[i];
    if (typeof x === "number" || typeof x === "boolean") return Number(x);
    throw new TypeError(`${what} must hold numbers, got ${typeof x} at ${i}`);
  };
  if (given instanceof Uint8Array && part.kind === "image" && !part.isChannelsLast) return given;
  if (part.kind === "image") return pixels(part, value, what);
  if (part.kind === "one_hot") return oneHot(part, value, what);
  return Array.from({ length: part.size }, (_, i) => {
    const x = Math.fround(part.hasOrigin ? value(i) - grid.origin[part.firstFeature + i] : value(i));
    if (!Number.isFinite(x)) throw new RangeError(`${what} holds ${value(i)} at ${i}: expected finite numbers of float32`);
    return x;
  });
}

function ownValue(observation, key) {
  if (typeof observation !== "object" || observation === null) throw new TypeError("the observation must be an object");
  return Object.prototype.hasOwnProperty.call(observation, key) ? observation[key] : undefined;
}

/** Pixels, channels first. */
function pixels(part, value, what) {
  const [nChannels, height, width] = part.shape;
  const size = height * width;
  const found = new Uint8Array(part.size);
  for (let i = 0; i < part.size; i++) {
    const x = value(i);
    if (!(x >= 0 && x <= 255 && Number.isInteger(x))) {
      throw new RangeError(`${what} holds ${x} at ${i}: expected integers of 0 to 255`);
    }
    found[part.isChannelsLast ? (i % nChannels) * size + Math.floor(i / nChannels) : i] = x;
  }
  return found;
}

/** Indices as zeros and ones. */
function oneHot(part, value, what) {
  return [].concat(
    ...part.nvec.map((n, i) => {
      const index = value(i);
      if (!(index >= 0 && index < n && Number.isInteger(index))) {
        throw new RangeError(`${what} holds ${index} at ${i}: expected an integer of 0 to ${n - 1}`);
      }
      return zerosAndOne(n, index);
    }),
  );
}

function zerosAndOne(n, index) {
  return Array.from({ length: n }, (_, category) => Number(category === index));
}

// -- actions ---------------------------------------------------------------------------------------------------------

/** The scores of each dimension of a discrete action; a category that is not allowed has the score LOWEST. */
function choices(sums, masks) {
  const n = student.nvec.reduce((total, size) => total + size, 0);
  const allowed = masks === undefined || masks === null ? null : Array.from(masks).flat(Infinity);
  if (allowed && student.isBox) throw new TypeError("masks are for discrete actions, this student has a Box action");
  if (allowed && allowed.length !== n) throw new RangeError(`masks must have ${n} values, got ${allowed.length}`);
  let used = 0;
  return student.nvec.map((size, dimension) => {
    const scores = Array.from({ length: size }, (_, i) => {
      if (allowed && !allowed[used + i]) return LOWEST;
      return student.isBits ? sums[dimension] * i : sums[used + i];
    });
    used += size;
    if (scores.every((score) => score === LOWEST)) throw new RangeError("masks allow no action at all");
    return scores;
  });
}

/** The first category with the largest score. */
function best(scores) {
  return scores.reduce((first, score, i) => (score > scores[first] ? i : first), 0);
}

/** Draw a category with a random number of 32 bits. */
function draw(scores, bits) {
  const largest = scores[best(scores)];
  const drop = 2 ** (16 + Math.max(0, 32 - Math.clz32(scores.length - 1) - 8)); // the sum of all weights stays below 2^32
  let total = 0;
  const running = scores.map((score) => {
    const units = score === LOWEST ? 4096 : scaled(largest - score, student.natMultiplier, student.natShift);
    if (units < 4096) total += Math.floor((student.expHigh[units >> 6] * student.expLow[units & 63]) / drop);
    return total;
  });
  const threshold = share(total, bits);
  return running.filter((sum) => sum <= threshold).length;
}

/** A Box action in the environment's units and inside its bounds; `noise` counts standard deviations. */
function boxAction(sums, noise) {
  return Float32Array.from(means(sums, student.isFixed), (mean, i) => {
    const x = noise ? Math.fround(mean + Math.fround(Math.fround(noise[i]) * box.std[i])) : mean;
    const above = x > box.low[i] ? x : box.low[i];
    return above < box.high[i] ? above : box.high[i];
  });
}

/** Logits or means: accumulators in the unit of the head. In fixed-point arithmetic a Box action is clipped before. */
function means(sums, isClipped) {
  const unit = layers[layers.length - 1].multiplier;
  return Float32Array.from(sums, (sum, i) => {
    const inside = isClipped ? Math.min(Math.max(sum, student.lowest[i]), student.highest[i]) : sum;
    return Math.fround(inside) * unit[unit.length > 1 ? i : 0];
  });
}

/** What `sample` needs for a dimension: 32 random bits, or a standard normal number of a Box action. */
function random() {
  if (!student.isBox) return Math.floor(Math.random() * 2 ** 32);
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

function indexOrArray(indices) {
  return student.actionShape.length ? indices : indices[0];
}

/** The most probable action. */
function mostProbable(sums, masks) {
  const scores = choices(sums, masks);
  return student.isBox ? boxAction(sums) : indexOrArray(scores.map(best));
}

/** An action drawn with given numbers, or with random ones. */
function drawn(sums, given, masks) {
  const scores = choices(sums, masks);
  const n = student.isBox ? sums.length : scores.length;
  const numbers = given === undefined || given === null ? Array.from({ length: n }, random) : [given].flat(Infinity);
  const list = numbers.length === 1 && typeof numbers[0] === "object" ? Array.from(numbers[0]) : numbers;
  if (list.length !== n) throw new RangeError(`sample needs ${n} random numbers, got ${list.length}`);
  if (student.isBox) {
    if (!box.std.length) throw new TypeError("this student has no standard deviation, so its actions cannot be drawn");
    return boxAction(sums, list);
  }
  if (!list.every((bits) => bits >= 0 && bits < 2 ** 32 && Number.isInteger(bits))) {
    throw new RangeError(`random numbers must be integers of 32 bits, got ${list}`);
  }
  return indexOrArray(scores.map((values, i) => draw(values, list[i])));
}

/** An action on the input grid, as a student that remembers its actions sees it in the next steps. */
function actionGrid(action) {
  if (!student.nRemembered) return [];
  const list = typeof action === "number" ? [action] : Array.from(action);
  const isNumbers = student.isBox || student.isBits;
  const values = isNumbers ? list : [].concat(...list.map((index, i) => zerosAndOne(student.nvec[i], index)));
  const first = grid.multiplier.length - values.length;
  return values.map((x, i) => quantized(x, first + i));
}

/** Choose an action. A student with a memory remembers the observation and the action for the next steps. */
function step(policy, observation, choose) {
  if (student.history === 1) return choose(accumulators(observation));
  let window = null;
  const sums = accumulators(observation, policy.state, (x) => {
    if (window === null) window = x;
  });
  const action = choose(sums);
  policy.state = Int8Array.from([...window, ...actionGrid(action)]).slice(-student.stateSize);
  return action;
}

/**
 * The student in one environment. A student with a memory keeps its last observations in `state`, as integers of the input
 * grid. The oldest one comes first. Where the student sees actions, each observation is followed by the action that was taken.
 */
export class Policy {
  constructor() {
    this.reset();
  }

  /** Begin an episode. */
  reset() {
    this.state = new Int8Array(student.stateSize);
  }

  /**
   * The most probable action, or the mean of a Box action. The next call is the next step of the episode.
   *
   * @param observation numbers in any array, or a number; for a Dict observation an object of them by key
   * @param masks which discrete actions are allowed, one value for each category; all of them by default
   * @returns an index; an array of indices; or the Float32Array of a Box action, flat
   */
  act(observation, masks) {
    return step(this, observation, (sums) => mostProbable(sums, masks));
  }

  /**
   * An action drawn from the policy. The same random numbers give the same action on every machine. The next call is the next
   * step of the episode.
   *
   * @param observation see `act`
   * @param given one number for each dimension of the action: an integer of 32 bits, or for a Box action a standard normal
   *     number. By default they come from Math.random
   * @param masks see `act`
   * @returns see `act`
   */
  sample(observation, given, masks) {
    return step(this, observation, (sums) => drawn(sums, given, masks));
  }

  /**
   * The logits of all categories, or the mean of a Box action before it is clipped. The memory stays as it is.
   *
   * @param observation see `act`
   * @returns a Float32Array
   */
  outputs(observation) {
    return means(accumulators(observation, this.state), false);
  }

  /**
   * The integers after each step: of each trunk the input grid and every layer, at last the accumulators of the head. The
   * memory stays as it is.
   *
   * @param observation see `act`
   * @returns an array of integer arrays, images channels first
   */
  trace(observation) {
    const seen = [];
    accumulators(observation, this.state, (x) => seen.push(x));
    return seen;
  }
}

const only = new Policy();

/** The policy of a student without a memory. */
function withoutMemory() {
  if (student.history > 1) {
    throw new TypeError("this student has a memory: make a `new Policy()`, and call its reset() when an episode begins");
  }
  return only;
}

/** See `Policy.act`. */
export function act(observation, masks) {
  return withoutMemory().act(observation, masks);
}

/** See `Policy.sample`. */
export function sample(observation, given, masks) {
  return withoutMemory().sample(observation, given, masks);
}

/** See `Policy.outputs`. */
export function outputs(observation) {
  return withoutMemory().outputs(observation);
}

/** See `Policy.trace`. */
export function trace(observation) {
  return withoutMemory().trace(observation);
}
