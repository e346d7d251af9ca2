"""`@pypi//torch` and the like: each wheel of a lock as one directory with its bytecode compiled.

rules_python's pip extension fetches and verifies the wheels and unpacks them. What it then offers to a target is a list
of single files, 48,000 of them for the torch stack, and a sandbox pays for each. So every wheel gets a second repository
here that holds the same files (hard links), compiled bytecode, and one target whose inputs are the directory and its digest.
"""

load("@plumbline_rules_python//:wheels.bzl", "PYTHON", "fetched")

def _normalised(name):
    return name.lower().replace("-", "_").replace(".", "_")

def _locked(content):
    """The packages of a requirements lock.

    Args:
        content: text of a lock, one `name[extra,...]==version` at the start of a line for each package.

    Returns:
        A dict from normalised name to the list of extras that were asked for.
    """
    packages = {}
    for line in content.split("\n"):
        if line[:1].isalnum():
            name, _, extras = line.partition("==")[0].strip().partition("[")
            packages[_normalised(name)] = [extra.strip() for extra in extras.rstrip("]").split(",") if extra]
    return packages

_WHEEL_BUILD = """\
load("{rule}", "wheel")

wheel(
    name = "{name}",
    content = "CONTENT",
    directory = "site-packages",
    visibility = ["//visibility:public"],
    deps = {deps},
)
"""

def _wheel_repository_impl(rctx):
    site = rctx.path("site-packages")
    packaging = rctx.path(fetched(rctx, rctx.attr.base, "packaging")).dirname.get_child("site-packages")
    result = rctx.execute(
        [
            rctx.path(rctx.attr.python),
            "-B",
            rctx.path(rctx.attr._unpack),
            rctx.path(fetched(rctx, rctx.attr.lock, rctx.attr.package)).dirname,
            site,
            ",".join(rctx.attr.extras),
        ] + [rctx.path(fetched(rctx, rctx.attr.lock, package)).dirname for package in rctx.attr.libraries],
        environment = {"PYTHONPATH": str(packaging)},
        timeout = 1800,
    )
    if result.return_code:
        fail("wheel {}: {}{}".format(rctx.attr.package, result.stdout, result.stderr))
    deps = []
    for name in json.decode(result.stdout):
        package = _normalised(name)
        if package in rctx.attr.left_out:
            continue
        if package not in rctx.attr.repositories:
            fail("wheel {} needs {}, which its lock does not name. hint: ./bazelw run //tools/pypi:lock".format(rctx.attr.package, name))
        repository = rctx.attr.repositories[package]
        deps.append("@" + repository if "//" in repository else "@{}//:{}".format(repository, package))
    rctx.file("BUILD.bazel", _WHEEL_BUILD.format(
        deps = json.encode_indent(deps, prefix = "    ", indent = "    ") if deps else "[]",
        name = rctx.attr.package,
        rule = Label("//tools/pypi:wheel.bzl"),
    ))

_wheel_repository = repository_rule(
    implementation = _wheel_repository_impl,
    attrs = {
        "base": attr.string(doc = "Name of the lock that has `packaging`, which evaluates markers."),
        "extras": attr.string_list(doc = "Extras of this wheel that the lock asks for."),
        "libraries": attr.string_list(doc = "Normalised names of the packages of the lock whose shared libraries this wheel loads."),
        "left_out": attr.string_list(doc = "Normalised names of requirements to do without."),
        "lock": attr.string(doc = "Name of the lock."),
        "package": attr.string(doc = "Normalised name."),
        "python": attr.label(doc = "Interpreter whose bytecode is compiled."),
        "repositories": attr.string_dict(doc = "Normalised name of every package of the lock and its base -> repository."),
        "_unpack": attr.label(default = "//tools/pypi:unpack.py"),
    },
    doc = "One wheel as one directory, with its dependencies read from its own metadata.",
)

_UNRESOLVED_BUILD = """\
load("{rule}", "unresolved")

unresolved(
    name = "{name}",
    lock = "{lock}",
    visibility = ["//visibility:public"],
)
"""

def _hub_repository_impl(rctx):
    rctx.file("BUILD.bazel", "")
    for package, repository in rctx.attr.repositories.items():
        # With the constraints of an accelerator, its own build of the package. What is not chosen is not fetched.
        chosen = {}
        for key, variant in rctx.attr.variants.items():
            name, _, constraint = key.partition(" ")
            if name == package:
                chosen[constraint] = variant
        chosen["//conditions:default"] = "@{}//:{}".format(repository, package)
        rctx.file(package + "/BUILD.bazel", """\
alias(
    name = "{package}",
    actual = select({actual}),
    visibility = ["//visibility:public"],
)
""".format(package = package, actual = json.encode_indent(chosen, prefix = "    ", indent = "    ")))
    for name in rctx.attr.unresolved:
        rctx.file("unresolved/{}/BUILD.bazel".format(name), _UNRESOLVED_BUILD.format(lock = name.removeprefix("pypi_"), name = name, rule = Label("//tools/pypi:wheel.bzl")))

_hub_repository = repository_rule(
    implementation = _hub_repository_impl,
    attrs = {
        "repositories": attr.string_dict(),
        "unresolved": attr.string_list(doc = "Accelerators whose locks name nothing yet."),
        "variants": attr.string_dict(doc = "`package constraint` -> label of the package where the constraint holds."),
    },
    doc = "One package of aliases for each locked wheel; fetches none of them.",
)

def _pypi_impl(mctx):
    repositories = {}
    accelerators = [accelerator for module in mctx.modules for accelerator in module.tags.accelerator]
    for module in mctx.modules:
        for lock in module.tags.lock:
            base = dict(repositories[lock.base]) if lock.base else {}
            packages = _locked(mctx.read(lock.requirements))
            own = {package: "{}__{}".format(lock.name, package) for package in packages}

            # What accelerators have their own of is asked for by the hub's name, which chooses: then one directory of
            # `transformers` serves with any build of torch.
            chosen = {}
            variants = {}
            unresolved = []
            for accelerator in accelerators:
                if accelerator.base == lock.name:
                    theirs = _locked(mctx.read(accelerator.requirements))
                    if not theirs:
                        unresolved.append(accelerator.name)
                    for package in theirs or ["torch"]:
                        if package in own:
                            chosen[package] = "{}//{}".format(lock.name, package)
                            variant = "@{0}__{1}//:{1}".format(accelerator.name, package) if theirs else "//unresolved/{}".format(accelerator.name)
                            variants["{} {}".format(package, accelerator.constraint)] = variant
            repositories[lock.name] = base | own | chosen
            for package, extras in packages.items():
                _wheel_repository(
                    name = own[package],
                    base = lock.base or lock.name,
                    extras = extras,
                    left_out = [_normalised(name) for name in lock.left_out],
                    lock = lock.name,
                    package = package,
                    python = PYTHON,
                    repositories = repositories[lock.name],
                )
            _hub_repository(
                name = lock.name,
                repositories = own,
                unresolved = unresolved,
                variants = variants,
            )
        for accelerator in module.tags.accelerator:
            packages = _locked(mctx.read(accelerator.requirements))
            for package, extras in packages.items():
                _wheel_repository(
                    name = "{}__{}".format(accelerator.name, package),
                    base = accelerator.base,
                    extras = extras,
                    libraries = [each for each in packages if each != package] if package == "torch" else [],
                    lock = accelerator.name,
                    package = package,
                    python = PYTHON,
                    repositories = repositories[accelerator.base] | {each: "{}__{}".format(accelerator.name, each) for each in packages},
                )

pypi = module_extension(
    implementation = _pypi_impl,
    doc = "Makes a hub of wheels for each lock.",
    tag_classes = {
        "accelerator": tag_class(attrs = {
            "base": attr.string(doc = "Name of the lock that has everything else.", mandatory = True),
            "constraint": attr.string(doc = "Where it holds, these wheels are used for those of the base.", mandatory = True),
            "name": attr.string(doc = "Name of the lock.", mandatory = True),
            "requirements": attr.label(
                doc = "The lock, with hashes. Where it names nothing, whatever needs torch is refused, with the way to a lock.",
                mandatory = True,
            ),
        }),
        "lock": tag_class(attrs = {
            "base": attr.string(doc = "Name of an earlier lock that provides what this one leaves out."),
            "left_out": attr.string_list(doc = "What wheels of this lock say they need, and what nothing here uses of them does not."),
            "name": attr.string(mandatory = True, doc = "Name of the hub repository."),
            "requirements": attr.label(mandatory = True, doc = "The lock, with hashes."),
        }),
    },
)
