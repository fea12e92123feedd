#!/usr/bin/env bash
# SciPy before 1.15: scipy.optimize.milp takes constraints as a sparse array, but not one whose places were given in
# NumPy's default integers. coo_array keeps them at 64 bits, as far as the csc_array that milp makes of it, and HiGHS'
# wrapper takes 32 bits only. The older coo_matrix of the same numbers is solved, and so is the array once the places are
# cast to int32. The message names neither the constraints nor a remedy.
#
# Seen with scipy 1.14.1 and 1.15.0, numpy 1.26.4, Python 3.11, Linux: max x + y with x + y <= 1.5, x and y 0 or 1
#   scipy 1.14.1: coo_array ValueError: Buffer dtype mismatch, expected 'int' but got 'long'
#   scipy 1.14.1: coo_array of int32 1.0
#   scipy 1.14.1: coo_matrix 1.0
#   scipy 1.15.0: coo_array 1.0
#   scipy 1.15.0: coo_array of int32 1.0
#   scipy 1.15.0: coo_matrix 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/solve.py" <<'PYTHON'
import numpy as np
import scipy
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, coo_matrix

rows, columns, values = np.array([0, 0]), np.array([0, 1]), np.array([1.0, 1.0])
for name, kind, places in (
    ("coo_array", coo_array, (rows, columns)),
    ("coo_array of int32", coo_array, (rows.astype(np.int32), columns.astype(np.int32))),
    ("coo_matrix", coo_matrix, (rows, columns)),
):
    constraint = LinearConstraint(kind((values, places), shape=(1, 2)), -np.inf, 1.5)
    try:
        said = -milp([-1, -1], constraints=constraint, integrality=[1, 1], bounds=Bounds(0, 1)).fun
    except ValueError as e:
        said = f"ValueError: {e}"
    print(f"scipy {scipy.__version__}: {name} {said}")
PYTHON
python3 -m venv "$folder/venv"
for version in 1.14.1 1.15.0; do
    "$folder/venv/bin/python" -m pip install --quiet scipy==$version numpy==1.26.4
    "$folder/venv/bin/python" "$folder/solve.py"
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "the behaviour has changed" >&2; exit 1; }
scipy 1.14.1: coo_array ValueError: Buffer dtype mismatch, expected 'int' but got 'long'
scipy 1.14.1: coo_array of int32 1.0
scipy 1.14.1: coo_matrix 1.0
scipy 1.15.0: coo_array 1.0
scipy 1.15.0: coo_array of int32 1.0
scipy 1.15.0: coo_matrix 1.0
SEEN
