"""ADM diffusion models, in which exposure-bias methods, solvers and launchers compose.

Seven seams carry everything (seams.py has them as types). A *denoiser* `(x_t, t, cond) -> Prediction` may be wrapped
by another denoiser: clipping, guidance, epsilon scaling. A *coupling* `(i, x, t, s) -> (t, s)` may move the times of
one step. A *solver* `(denoise, x, t, s, state, noise) -> Step` goes from t to s. A *correction*
`(x, prediction, t, s) -> x` may pull the new state back. A *corruption* `(noise, t) -> (noise, t)` acts in training
only. An *objective* `(model, x, cond) -> Loss` is what training minimises. A *conditioning* says what the network is
told beside x_t and t. A method is one file with its flags and whichever of these it moves, and one line in
methods.STACK. Times are training timesteps 0..T-1; -1 is the data and T is pure noise.
"""

__version__ = "0.1.0"
