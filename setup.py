"""Package sdd_face: every setting is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
offered = "notebooks", "methods", "facescrub", "align", "explore", "course"
extras = {name: settings[f"{name}_requirements"].split() for name in offered}


class SourceArchive(sdist):
    """A source archive that holds the settings as well: setup.py needs them there."""

    def make_distribution(self):
        self.filelist.append("settings.ini")
        super().make_distribution()


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    python_requires=f">={settings['min_python']}",
    packages=["sdd_face", "sdd_face.nbs"],
    package_dir={"sdd_face.nbs": "nbs"},
    package_data={
        "sdd_face": ["weights/*.safetensors"],
        "sdd_face.nbs": [  # what a run needs, and the course
            "[0-9]*.ipynb", "beyond/[0-9]*.ipynb", "course/*.ipynb", "profiles/*.yaml"],
    },
    install_requires=settings["requirements"].split(),
    extras_require={
        **extras, "dev": sum(extras.values(), []) + settings["dev_requirements"].split(),
        **{name: settings[f"{name}_requirements"].split() for name in ("bench", "docs")}},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    cmdclass={"sdist": SourceArchive},
    zip_safe=False,
)
