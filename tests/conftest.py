"Long files start first, so that all processes of pytest-xdist end at about the same time."
LONG = ["test_run", "test_cli", "test_checks", "test_student_training", "test_distill", "test_retrieval", "test_prompt_injection",
        "test_filters", "test_reports_teachers", "test_teachers_faults", "test_embedder", "test_teachers_models", "test_question",
        "test_planted_edits", "test_lab", "test_temperature", "test_models"]


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))
