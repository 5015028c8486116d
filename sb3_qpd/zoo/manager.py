"""RL Zoo's experiment manager for students: it checks the entry, loads the teacher, and writes the student's own files."""

import contextlib
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import optuna
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_qpd.atomic import CHECKPOINT
from sb3_qpd.distillation.checkpoint_files import is_in_use, newest_steps, newest_values
from sb3_qpd.distillation.checkpoints import Checkpoint
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.distillation.schedules import COSINE, cosine_of
from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.envs.registry import raise_missing_package, without_harmless_warnings
from sb3_qpd.envs.zoo_config import from_zoo_entry
from sb3_qpd.evaluation.comparison import make_report, plan_evaluation
from sb3_qpd.evaluation.report import console_summary, next_step, write_report
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.zoo import ALGO
from sb3_qpd.zoo.command_line import own_command, with_options
from sb3_qpd.zoo.entries import REPORT_EPISODES, check_entry, check_environment, expand_env_id
from sb3_qpd.zoo.search import BYTES, SIZE, front_table, pareto_front

N_REPORT_EPISODES = 100
N_EVALUATIONS = 4  # of a run that is shorter than RL Zoo's --eval-freq: without one there is no best_model.zip


class StudentManager(ExperimentManager):
    """
    See :class:`rl_zoo3.exp_manager.ExperimentManager`. Nothing changes for other algorithms than ``qpd``.

    :param args: see RL Zoo
    :param kwargs: see RL Zoo
    """

    has_begun: ClassVar[bool] = False  # whether a run of this process has begun to learn
    checkpoint_every: ClassVar[int | None] = None  # see Checkpoint; 0 for none
    resume: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_student = self.algo == ALGO
        if self.is_student and kwargs.get("config") is None:
            self.config = __package__  # its attribute ``hyperparams``: so args.yml names no path of this machine
        self.recipe: EnvRecipe | None = None
        self.report_episodes = N_REPORT_EPISODES
        self._study: optuna.Study | None = None
        self._checkpoint: Checkpoint | None = None
        if self.is_student and not self.optimize_hyperparameters:
            self._find_unfinished()

    def _find_unfinished(self) -> None:
        """With ``--resume`` the newest run that was killed goes on in its folder. Otherwise it is named, and stays."""
        runs = [path.parent for path in Path(self.log_path).glob(f"{self.env_name}_*/{CHECKPOINT}")]
        unfinished = [
            (run.stat().st_mtime, run, steps)
            for run in runs
            if (steps := newest_steps(run / CHECKPOINT)) is not None and not is_in_use(run / CHECKPOINT)
        ]
        if unfinished:
            _, run, steps = max(unfinished)
            if StudentManager.resume:
                self.save_path, self.params_path = str(run), str(run / self.env_name)
                self.seed = _seed_of(run / CHECKPOINT, self.seed)
                print(f"Found a checkpoint after {steps} steps in {run}")
            else:
                print(f"{run} holds an unfinished run of {steps} steps: add --resume to the same command to go on from there")
        elif StudentManager.resume:
            print(f"Found no checkpoint of {self.env_name} in {self.log_path}: the run begins")
        if StudentManager.checkpoint_every != 0:
            every, resume = StudentManager.checkpoint_every or None, StudentManager.resume and bool(unfinished)
            self._checkpoint = Checkpoint(Path(self.save_path, CHECKPOINT), every, resume)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check the entry and load its teacher once. The files of the run name the teacher as the entry does."""
        if not self.is_student:
            return super().read_hyperparameters()
        self._take_trial_zero()
        try:
            hyperparams, saved = super().read_hyperparameters()
        except AttributeError as error:
            raise ValueError(
                f"Expected a mapping of environments to mappings of hyperparameters in {self.config}, for "
                f"{self.env_name.gym_id} too: {error}"
            ) from error
        except ValueError as error:
            if not str(error).startswith("Hyperparameters not found"):
                raise
            raise ValueError(
                f"{self.config} has no entry for {self.env_name.gym_id}. Write one into a file of your own (policy, "
                "n_timesteps, teacher, as in hyperparams/qpd.yml) and pass it: --conf-file my.yml"
            ) from error
        check_entry(hyperparams)
        self.report_episodes = hyperparams.pop(REPORT_EPISODES, N_REPORT_EPISODES)
        saved["teacher"] = expand_env_id(hyperparams["teacher"], self.env_name)
        self._teacher_word = shlex.quote(str(saved["teacher"]))
        teacher = load_teacher(saved["teacher"], device=self.device, needs_env=False)  # RL Zoo builds it from the entry
        check_environment(teacher, hyperparams, self.env_name.gym_id)
        env_kwargs = {**(hyperparams.get("env_kwargs") or self.env_kwargs), **(self._eval_env_kwargs_args or {})}
        self.recipe = from_zoo_entry(hyperparams, self.env_name.gym_id, env_kwargs)
        return {**hyperparams, "teacher": teacher}, saved

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        """See RL Zoo, which imports here the wrappers, callbacks and policy that an entry names."""
        try:
            return super()._preprocess_hyperparams(hyperparams)
        except AttributeError as error:
            if not self.is_student:
                raise
            raise ValueError(
                f"The entry names a class that does not exist: {error}. Expected dotted names, as in an import"
            ) from error

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        """See RL Zoo, which reads any prefix before a number as linear to zero."""
        rate = hyperparams.get("learning_rate")
        if not (isinstance(rate, str) and rate.startswith(COSINE)):
            return ExperimentManager._preprocess_schedules(hyperparams)
        others = {name: value for name, value in hyperparams.items() if name != "learning_rate"}
        return {**ExperimentManager._preprocess_schedules(others), "learning_rate": cosine_of(rate)}

    def _take_trial_zero(self) -> None:
        """Read trial 0: RL Zoo takes ``--trial-id 0`` for no trial."""
        if self.trial_id == 0 and self.storage and self.study_name:
            of_trial = self.load_trial(self.storage, self.study_name, 0)
            self.custom_hyperparams = {**of_trial, **(self.custom_hyperparams or {})}

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """See RL Zoo. The folder of a run that cannot start is removed."""
        if not self.is_student:
            return super().setup_experiment()
        try:
            results = super().setup_experiment()
            if results is None:
                self._try_student()
            elif isinstance(results[0], QPDDistiller):
                results[0].set_recipe(self.recipe)  # the teacher's check plays there, not into the run's monitors
        except BaseException:
            _remove_empty(Path(self.save_path))
            raise
        return results

    def create_callbacks(self) -> None:
        """See RL Zoo. A run that is shorter than ``--eval-freq`` is evaluated too: ``best_model.zip`` comes from that."""
        if self.is_student and self.eval_freq > self.n_timesteps:
            self.eval_freq = max(self.n_timesteps // N_EVALUATIONS, 1)
        super().create_callbacks()

    def create_envs(self, *args: Any, **kwargs: Any) -> VecEnv:
        """
        See RL Zoo, which also looks for a ``vecnormalize.pkl`` beside the model of ``-i`` and in the current folder.

        A student's game is played by ALE's vector environment, as by ``sb3-qpd compress``.
        """
        if self.is_student and self.recipe is not None and self.recipe.is_native and not self.monitor_kwargs:
            return self._native_envs(self.recipe, *args, **kwargs)
        spec = gym.spec(self.env_name.gym_id)
        try:
            with without_harmless_warnings(spec):
                env = super().create_envs(*args, **kwargs)
        except gym.error.Error as error:
            raise_missing_package(spec, error)
            raise
        if self.is_student and unwrap_vec_normalize(env) is not None:
            env.close()
            if not (Path(self.trained_agent).parent / self.env_name / "vecnormalize.pkl").is_file():
                raise ValueError("The entry's vec_env_wrapper normalizes observations: a student takes raw ones. Remove it")
            raise ValueError(
                f"RL Zoo found {self.env_name}/vecnormalize.pkl (in the current directory, or beside the model to continue) "
                "and would normalize the student's observations: a student takes raw ones. Move the file, or start in another "
                "directory"
            )
        return env

    def _native_envs(self, recipe: EnvRecipe, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        recipe = recipe if eval_env else replace(recipe, env_kwargs=self.env_kwargs)
        env = recipe.make_vec_env(n_envs, seed=self.seed, training=not eval_env)
        if isinstance(env, AtariVecEnv) and not (eval_env or no_log):
            env.write_results(Path(self.save_path) / "0.monitor.csv")
        return env

    def _try_student(self) -> None:
        """Build the entry's student once: an error in the entry would become hundreds of pruned trials. It gives sizes too."""
        env = self.create_envs(1, no_log=True)
        try:
            self._student = QPDDistiller(env=env, device=self.device, **self._hyperparams)
        finally:
            env.close()

    def learn(self, model: BaseAlgorithm) -> None:
        """See RL Zoo. The folder of a run that fails before its first step is removed."""
        StudentManager.has_begun = True
        if not self.is_student:
            return super().learn(model)
        model.num_timesteps = 0  # RL Zoo counts from zero with -i too
        model.checkpoint = self._checkpoint  # type: ignore[attr-defined]
        try:
            super().learn(model)
        except Exception as error:
            if model.num_timesteps > 0:
                raise
            StudentManager.has_begun = False
            if self._checkpoint is None or self._checkpoint.num_timesteps is None:
                for name in ("config.yml", "args.yml", "command.txt"):
                    Path(self.params_path, name).unlink(missing_ok=True)
                _remove_empty(Path(self.save_path))
            if isinstance(error, AttributeError) and error.__context__ is not None:
                raise error.__context__ from None  # RL Zoo closed a progress bar that had not been opened
            raise

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Write RL Zoo's files, then ``student.npz``, then ``report.json`` and ``report.md``."""
        super().save_trained_model(model)
        if not isinstance(model, QPDDistiller):
            return
        folder = Path(self.save_path)
        model.to_integer(self.recipe or {"env_id": self.env_name.gym_id}).save(folder / "student.npz")
        if self.report_episodes > 0:
            self._report(model, folder)
        if self._checkpoint is not None and model.num_timesteps >= self.n_timesteps:  # else it was stopped, and may go on
            self._checkpoint.discard()

    def _report(self, model: QPDDistiller, folder: Path) -> None:
        assert model.teacher is not None
        env: EnvRecipe | VecEnv = self.recipe or self.create_envs(1, eval_env=True)
        if isinstance(env, VecEnv):
            env.spec = gym.spec(self.env_name.gym_id)  # type: ignore[attr-defined]  # the report names it
        plan = plan_evaluation(
            model.teacher, env, self.report_episodes, deterministic=self.deterministic_eval, progress_bar=self.show_progress
        )
        report = make_report(model, plan)
        rewrite = partial(with_options, n_episodes=report["episodes_needed"])
        step = next_step(report, own_command(), str(folder), self._teacher_word, rewrite=rewrite)
        write_report(report, folder, step)
        if isinstance(env, VecEnv):
            env.close()
        print(f"\n{console_summary(report, step)}")

    def hyperparameters_optimization(self) -> None:
        """See RL Zoo. Then print the Pareto front, and remove the empty run folder, which ``enjoy`` would take."""
        import pandas  # noqa: F401  # RL Zoo needs it, but only after the last trial

        StudentManager.has_begun = True
        super().hyperparameters_optimization()
        if self.is_student:
            # at the end: processes that began together share the folder, and those that begin later take another one
            _remove_empty(Path(self.save_path))
        if self.is_student and self._study is not None:
            print(front_table(pareto_front(self._study.trials)))

    def objective(self, trial: optuna.Trial) -> float:
        """See RL Zoo; the trial also notes its student's size."""
        self._study = trial.study
        value = super().objective(trial)
        if self.is_student:
            trial.set_user_attr(BYTES, self._nbytes(trial.params))
        return value

    def _nbytes(self, params: dict[str, Any]) -> int:
        student = self._student  # the entry's: settings that are not searched come from it
        size = {name: params.get(name, getattr(student, name)) for name in SIZE}
        arch = student.find_arch(**size, history=student.history, history_actions=student.history_actions)
        policy_class: type[QuantActorCriticPolicy] = student.policy_class  # type: ignore[assignment]
        policy_kwargs = {**student.policy_kwargs, "student_arch": arch}
        policy = policy_class(student.observation_space, student.action_space, student.lr_schedule, **policy_kwargs)
        return policy.to_integer().nbytes


def _seed_of(checkpoint: Path, default: int) -> int:
    """The seed of a run that goes on. Where the command names none, RL Zoo draws another one each time."""
    settings = (newest_values(checkpoint) or {}).get("settings")
    seed = settings.get("seed") if isinstance(settings, dict) else None
    return int(seed) if isinstance(seed, str) and seed.isdecimal() else default


def _remove_empty(run: Path) -> None:
    """Remove a run folder that holds nothing but monitors and empty folders."""
    monitors = list(run.glob("*.monitor.csv"))
    if {path for path in run.rglob("*") if path.is_file()} - {*monitors}:
        return
    for path in monitors:
        path.unlink()
    for folder in (*(path for path in run.glob("*") if path.is_dir()), run):
        with contextlib.suppress(OSError):
            folder.rmdir()
