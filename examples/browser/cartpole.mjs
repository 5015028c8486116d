// Gymnasium's CartPole-v1 (Euler), and a push from outside. The state is x, x', theta, theta'.

const GRAVITY = 9.8;
const MASS_OF_POLE = 0.1;
const MASS = 1.0 + MASS_OF_POLE;
const HALF_LENGTH = 0.5;
const POLE_MASS_LENGTH = MASS_OF_POLE * HALF_LENGTH;
const FORCE = 10.0;

export const SECONDS = 0.02; // of one step
export const X_LIMIT = 2.4;
export const THETA_LIMIT = (12 * 2 * Math.PI) / 360;

/**
 * The next state.
 *
 * @param state four numbers
 * @param action 0 pushes the cart to the left, 1 to the right
 * @param push a force of the visitor in newtons, which is added to the policy's
 */
export function step([x, xDot, theta, thetaDot], action, push = 0) {
  const force = (action === 1 ? FORCE : -FORCE) + push;
  const cos = Math.cos(theta);
  const sin = Math.sin(theta);
  const temp = (force + POLE_MASS_LENGTH * (thetaDot * thetaDot) * sin) / MASS;
  const thetaAcc = (GRAVITY * sin - cos * temp) / (HALF_LENGTH * (4.0 / 3.0 - (MASS_OF_POLE * (cos * cos)) / MASS));
  const xAcc = temp - (POLE_MASS_LENGTH * thetaAcc * cos) / MASS;
  return [x + SECONDS * xDot, xDot + SECONDS * xAcc, theta + SECONDS * thetaDot, thetaDot + SECONDS * thetaAcc];
}

/** Whether the episode ends in this state: the cart is outside, or the pole leans too far. */
export function hasEnded([x, , theta]) {
  return !(Math.abs(x) <= X_LIMIT && Math.abs(theta) <= THETA_LIMIT);
}

/** A first state near the middle, from four numbers of 0 to 1. */
export function reset(uniform) {
  return uniform.map((u) => (u - 0.5) / 10);
}
