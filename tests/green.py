import sys
def main():
    library, *arguments = sys.argv[1:]
    if library == "gevent":
        from gevent import monkey
        monkey.patch_all()
    elif library == "eventlet":
        import eventlet
        eventlet.monkey_patch()
    import os; os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]="1"
    import pytest, inspect
    class Only:
        def pytest_collection_modifyitems(self, config, items):
            from tests.servers import BINARIES
            first = next(iter(BINARIES))
            kept, left = [], []
            for item in items:
                params = item.callspec.params if hasattr(item, "callspec") else {}
                shell = params.get("asynchronous")
                if shell is None:
                    shell = inspect.iscoroutinefunction(item.obj) or "aio" in item.obj.__code__.co_names or "asyncio" in item.obj.__code__.co_names
                server = params.get("server", first)
                (left if shell or server != first or params.get("resp", 3)!=3 else kept).append(item)
            items[:] = kept
            config.hook.pytest_deselected(items=left)
    return pytest.main(["-p", "pytest_timeout", *arguments], plugins=[Only()])
if __name__ == "__main__":
    sys.exit(main())
