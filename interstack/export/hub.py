"""An export on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
)

from interstack.errors import ConfigurationError, InterstackError, first_line

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


class HubRepository:
    """A model's repository on the hub, which exports are uploaded to.

    Making one asks the hub who the user is, so that a missing token or network is found before
    anything is computed.

    Args:
        name: ``OWNER/NAME``.
        private: Make the repository private.

    Raises:
        ConfigurationError: If the name is none, there is no token, the hub refuses it, or the
            repository exists and is public where a private one is required.
        InterstackError: If the hub can't be reached.
    """

    def __init__(self, name: str, *, private: bool = False) -> None:
        if name.count("/") != 1 or not all(name.split("/")):
            raise ConfigurationError(f"--push-to-hub is {name}: give OWNER/NAME")
        self.name = name
        self.private = private
        self._api = HfApi()
        with _hub_errors(name):
            self._api.whoami()
            public = self._api.repo_exists(name) and not self._api.model_info(name).private
        if private and public:
            raise ConfigurationError(
                f"--private is given, but {name} exists and is public: make it private in its "
                "settings on the hub, or leave --private out"
            )

    def upload(self, directory: Path) -> str:
        """Upload a directory as one commit; the repository is made if there is none.

        Args:
            directory: An export.

        Returns:
            The repository's address.

        Raises:
            ConfigurationError: If the hub refuses it.
            InterstackError: If the hub can't be reached.
        """
        with _hub_errors(self.name):
            self._api.create_repo(self.name, private=self.private or None, exist_ok=True)
            self._api.upload_folder(
                repo_id=self.name,
                folder_path=directory,
                commit_message="Student exported by interstack",
            )
        return f"{constants.ENDPOINT}/{self.name}"


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Raise what the hub's client raises as one line with the fix."""
    try:
        yield
    except HFValidationError as error:
        raise ConfigurationError(
            f"--push-to-hub is {name}, which the hub does not allow ({first_line(error)}): give "
            "another OWNER/NAME"
        ) from error
    except LocalTokenNotFoundError as error:
        raise ConfigurationError(f"--push-to-hub is {name}, but there is no token: {_LOGIN}") from (
            error
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        fix = _LOGIN if status in (401, 403) else "try again later"
        raise ConfigurationError(
            f"--push-to-hub is {name}, and the hub answers {status} ({first_line(error)}): {fix}"
        ) from error
    except Exception as error:  # of its HTTP library, which differs between versions of the client
        raise InterstackError(
            f"--push-to-hub is {name}, but {constants.ENDPOINT} can't be reached "
            f"({first_line(error)}): connect to the network (and unset HF_HUB_OFFLINE), or export "
            "without it and upload the directory later"
        ) from error
