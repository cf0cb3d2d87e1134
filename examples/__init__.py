# SPDX-License-Identifier: Apache-2.0
"""Distil a student on real data, and time the loss: `python3 dev.py demo`.

demo.py (the command)
    -> recipes.py       sizes and networks of each data set
    -> experiment.py    one seed: teacher, students, the student that never saw a 3
         -> data.py         images, the split into training, validation, test
         -> training.py     networks and their training; here fastkd is called
         -> bias.py         the correction of a class that the student never saw
    -> loss_time.py     fastkd beside the eager PyTorch code it replaces
    -> report.py, plots.py

After Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
"""
