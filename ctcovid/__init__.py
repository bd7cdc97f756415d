"""ctcovid: chest CT as COVID-19, common pneumonia or normal, by 3D convolutional networks (Li, Pei and Guo 2021)."""

__version__ = "0.2.0"
