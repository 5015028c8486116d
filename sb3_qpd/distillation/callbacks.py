"""SB3's callbacks around a distiller."""

from __future__ import annotations

from stable_baselines3.common.callbacks import CallbackList, EvalCallback, EventCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_qpd.teachers.normalization import remove_vec_normalize


class StageBar(ProgressBarCallback):
    """SB3's progress bar, with the stage of learning and the student's quality in front of it."""

    def tell(self, text: str) -> None:
        """
        Show a text in front of the bar.

        :param text: stage or quality, a few words
        """
        self.pbar.set_description(text, refresh=True)

    def close(self) -> None:
        """Close the bar, also after an error. A second call does nothing."""
        if hasattr(self, "pbar"):
            self.pbar.close()


def evaluate_raw(callback: MaybeCallback | None) -> None:
    """
    Take the ``VecNormalize`` off the environments in which SB3's callbacks evaluate: a student normalizes by itself.

    :param callback: callback, list of callbacks or function, as ``learn()`` takes them
    """
    if isinstance(callback, EvalCallback):
        callback.eval_env, _ = remove_vec_normalize(callback.eval_env)
        evaluate_raw(callback.callback_on_new_best)
    if isinstance(callback, EventCallback):
        evaluate_raw(callback.callback)
    for one in callback.callbacks if isinstance(callback, CallbackList) else callback if isinstance(callback, list) else ():
        evaluate_raw(one)
