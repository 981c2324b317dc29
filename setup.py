from setuptools import find_packages, setup

setup(
    name="guided-diffusion",
    version="0.1.0",
    description="ADM diffusion models in which exposure-bias methods, solvers and launchers compose",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["guided_diffusion", "guided_diffusion.*", "evaluations", "evaluations.*"]),
    package_data={"guided_diffusion": ["py.typed"]},
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "blobfile>=2",
        "Pillow",
        "opencv-python-headless",  # not imported here, but by forks of guided-diffusion, which run on this package
        "tqdm",
        "scipy",
        "mpi4py>=4",
        "mpich; sys_platform != 'win32'",
    ],
    extras_require={
        "data": ["scikit-learn"],
        "safetensors": ["safetensors"],
        "evaluator": ["tensorboard"],
        "plots": ["matplotlib"],
    },
)
