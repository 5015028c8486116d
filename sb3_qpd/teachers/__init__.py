"""Teachers: frozen pretrained policies that label raw observations, and the safe reading of their files."""

from sb3_qpd.teachers.families import TEACHERS
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.labels import TeacherLabels
from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.teachers.normalization import ObsNormalization
from sb3_qpd.teachers.teacher import Teacher, TeacherOutput

__all__ = ["TEACHERS", "ObsNormalization", "Teacher", "TeacherError", "TeacherLabels", "TeacherOutput", "load_teacher"]
