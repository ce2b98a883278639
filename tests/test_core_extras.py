"Quiet is for one thread: what others say meanwhile is heard, whatever the order in which quiet contexts end."
import logging
import sys
import threading
import warnings

from distillery.core.extras import QuietStream, need, silenced


def test_only_the_quiet_thread_is_not_heard(capsys):
    inside, spoken = threading.Event(), threading.Event()

    def export():
        with silenced():
            inside.set()
            assert spoken.wait(10)
            sys.stdout.write("graph\n")
            sys.stderr.write("bar\n")
            warnings.warn("axis", stacklevel=1)
            logging.getLogger("onnx_ir").warning("pass 3")

    exporting = threading.Thread(target=export)
    exporting.start()
    assert inside.wait(10)
    sys.stdout.write("loss 1.20\n")
    sys.stderr.write("a real warning\n")
    spoken.set()
    exporting.join()
    assert tuple(capsys.readouterr()) == ("loss 1.20\n", "a real warning\n")


def test_streams_come_back_when_the_last_quiet_context_ends():
    before, first, second = (sys.stdout, sys.stderr), silenced(), silenced()
    first.__enter__()
    second.__enter__()
    assert isinstance(sys.stdout, QuietStream)
    second.__exit__(None, None, None)
    assert isinstance(sys.stdout, QuietStream)
    first.__exit__(None, None, None)
    assert (sys.stdout, sys.stderr) == before


def test_a_handler_of_the_user_hears_other_threads_only():
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.root.addHandler(handler)
    try:
        with silenced():
            logging.warning("from the exporter")
            other = threading.Thread(target=logging.warning, args=["from the trainer"])
            other.start()
            other.join()
        logging.warning("afterwards")
    finally: logging.root.removeHandler(handler)
    assert heard == ["from the trainer", "afterwards"]


def test_a_library_that_sets_up_logging_for_all_is_undone(tmp_path, monkeypatch):
    (tmp_path / "talkative.py").write_text("import logging\nlogging.root.addHandler(logging.StreamHandler())\nlogging.root.setLevel(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(logging.root.handlers), logging.root.level
    need("talkative", extra="onnx")
    assert (logging.root.handlers, logging.root.level) == before
