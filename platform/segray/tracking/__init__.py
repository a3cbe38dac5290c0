"""Tracking of runs in MLflow. Each run writes a journal, and an uploader sends the journal to MLflow.

This module imports nothing, so that a process can write the journal without importing MLflow.
"""
