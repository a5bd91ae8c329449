"""The functions of the tiny lmms-eval task, in the manner of its own tasks."""

from __future__ import annotations


def doc_to_visual(doc):
    return [doc["video"]]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["prompt"]


def process_results(doc, results):
    return {"score": float(results[0].strip() == doc["answer"])}
