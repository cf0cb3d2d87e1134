# SPDX-License-Identifier: Apache-2.0
"""Distil students on real data: `python3 dev.py demo`, `python -m examples.relational`, and so on.

demo.py (the command)
    -> options.py       what the command line takes
    -> recipes.py       sizes and networks of each data set
    -> experiment.py    one seed: teacher, students, the student that never saw a 3
         -> data.py         images, the split into training, validation, test
         -> training.py     networks and their training; here fastkd is called
         -> bias.py         the correction of a class that the student never saw
    -> loss_time.py     fastkd beside the eager PyTorch code it replaces
    -> report.py, plots.py

relational.py (the command: distances and angles of an embedding)
    -> options.py, recipes.py, report.py
    -> relational_experiment.py    one seed: teacher, students with and without RKD, recall@1
         -> data.py, training.py
    -> relational_plot.py

causal_lm.py (the command: a language model from one with another vocabulary)
    -> options.py, report.py
    -> causal_lm_experiment.py     models, a step of several batches
         -> text.py
    -> causal_lm_plot.py

cached_teacher.py (the command: a teacher by its K largest classes, in a file)
    -> options.py, report.py
    -> cached_teacher_experiment.py    models, the file, the students' losses
         -> text.py
    -> cached_teacher_plot.py

After Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv:1503.02531, and
Park, Kim, Lu, Cho: Relational Knowledge Distillation, arXiv:1904.05068.
"""
