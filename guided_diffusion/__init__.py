"""ADM diffusion models, in which exposure-bias methods, solvers and launchers compose.

Four seams carry everything. A *denoiser* `(x_t, t) -> Prediction` may be wrapped by another
denoiser (clipping, guidance, epsilon scaling). A *coupling* `(i, x, t, s) -> (t, s)` may move
the clock of one step. A *solver* `(denoise, x, t, s, state, noise) -> Step` goes from t to s.
A *corruption* `(noise, t) -> noise` acts in training only. Times are training timesteps
0..T-1; -1 is the data and T is pure noise.
"""

__version__ = "0.1.0"
